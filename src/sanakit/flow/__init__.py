"""The mathematics of the path from data to noise; knows no network, file or device."""
