"""The embedded model, trained from nothing: data to contact sheet, with what it cost."""
