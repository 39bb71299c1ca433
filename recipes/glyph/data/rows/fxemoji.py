"""What the icons of the set fxemoji draw, where no other set has their names."""

from __future__ import annotations

from collections.abc import Mapping

FXEMOJI: Mapping[str, str] = {
    "catside": "cat", "dogside": "dog", "mouseside": "mouse", "pigside": "pig",
    "tigerside": "tiger", "dragonside": "dragon", "leopardside": "leopard", "bunnyside": "rabbit",
    "bunny": "rabbit face", "dragonhead": "dragon face", "spurtingwhale": "spouting whale",
    "hampster": "hamster", "frontfacingchick": "front-facing baby chick", "pigsnout": "pig nose",
    "monkeyhear": "hear-no-evil monkey", "monkeysee": "see-no-evil monkey",
    "monkeyspeak": "speak-no-evil monkey", "heartblue": "blue heart", "heartgreen": "green heart",
    "heartpurple": "purple heart", "heartyellow": "yellow heart", "2hearts": "two hearts",
    "heartarrow": "heart with arrow", "chilipepper": "hot pepper", "evergreen": "evergreen tree",
    "present": "wrapped gift", "acorn": "chestnut", "bolt": "high voltage",
    "bouquetofflowers": "bouquet", "fallingleaf": "fallen leaf", "leaffluttering":
    "leaf fluttering in wind", "fishcakeswirl": "fish cake with swirl", "whitestar": "star",
    "sunrays": "sun", "stormcloud": "cloud with rain", "sunraincloud": "sun behind rain cloud",
    "snowmountains": "snow-capped mountain", "toykotower": "Tokyo tower", "tennisball": "tennis",
    "studiomic": "studio microphone", "bullhorn": "loudspeaker", "cellphone": "mobile phone",
    "personalcomputer": "laptop", "folder": "file folder", "openfolder": "open file folder",
    "openlock": "unlocked", "lockandkey": "locked with key", "ringingbell": "bell",
    "bellcancellation": "bell with slash", "heels": "high-heeled shoe", "mensshoe": "man's shoe",
    "sandals": "woman's sandal", "womansshirt": "woman's clothes", "mansshirt": "t-shirt",
    "forkknife": "fork and knife", "turban": "person wearing turban", "confetti": "confetti ball",
    "crying": "crying face", "loudlycrying": "loudly crying face", "winking": "winking face",
    "smallfrown": "slightly frowning face", "smallsmile": "slightly smiling face",
    "frown": "frowning face", "grinwide": "grinning face", "grintears": "face with tears of joy",
    "grinsquint": "grinning squinting face", "grinsweat": "grinning face with sweat",
    "screamfear": "face screaming in fear", "anguish": "anguished face",
    "kissclosedeyes": "kissing face with closed eyes", "kisseyes": "kissing face with smiling eyes",
    "smiletongue": "face with tongue", "tongueoutwink": "winking face with tongue",
    "devilhorns": "smiling face with horns", "japaneseangrymask": "ogre",
    "speechbubble": "speech balloon", "thoughtbaloon": "thought balloon",
    "opticaldisc": "optical disk",
    "floppydisk2": "floppy disk", "leftmagnifyingglass": "magnifying glass tilted left",
    "rightmagnifyingglass": "magnifying glass tilted right", "rightspeaker": "speaker low volume",
    "rightspeaker3soundwaves": "speaker high volume", "europeafricaglobe":
    "globe showing Europe-Africa", "americasglobe": "globe showing Americas",
    "asiaaustraliaglobe": "globe showing Asia-Australia", "high5": "raised hand",
    "flexbicep": "flexed biceps", "fistedhand": "raised fist", "housebuilding": "house",
    "highspeedtrainbulletnose": "bullet train", "warningsign": "warning",
    "waningbibbousmoon": "waning gibbous moon",
}  # fmt: skip
