"""What the parts of an avatar are called: every attribute of every style, in words."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recipes.glyph.data.captions import article
from recipes.glyph.data.colours import WORDS, name_pixels

# Hair, as people name its colours.
_HAIR = """
592454 purple | dba3be pink | 85c2c6 light blue | cb6820 orange | ac6511 light brown
ab2a18 red | e5d7a3 blond | 562306 dark brown | 0e0e0e black | afafaf gray | 796a45 light brown
6a4e35 brown | b9a05f blond | 3eac2c green | 4a312c dark brown | c93305 red | 724133 brown
d6b370 blond | b58143 light brown | a55728 reddish brown | 2c1b18 black | e8e1e1 white
ecdcbf pale blond | f59797 pink | 220f00 black | e9b729 golden | e2ba87 blond | 605de4 blue
71472d brown | 238d80 teal | 3a1a00 dark brown | d56c0c orange | 699bf7 blue | 000000 black
ffc700 yellow | f24e1e red | 9747ff purple | 0fa958 green | fff500 yellow | ffffff white
1d5dff blue | ff543d red | fc909f pink | f4d150 yellow | 9287ff purple | 6bd9e9 light blue
ffedef white | d2eff3 pale blue | 77311d brown | ffeba4 pale yellow | e0ddff lavender
ac6651 light brown | f9c9b6 peach | 47280b brown | ad3a20 red | 1b0b47 dark blue
362c47 dark purple | dee1f5 white | e16381 pink | e15c66 red | f27d65 coral | 6c4545 brown
f29c65 orange | 28150a black | 83623b light brown | 009bbd blue | 603a14 brown | bd1700 red
a78961 light brown | 611c17 dark red | 612616 reddish brown | 91cb15 green | 603015 brown
cab188 blond
"""
# Clothes and faces in colours that no basic word fits.
_CLOTHES = """
9ddadb light blue | 8fa7df light blue | e78276 coral | fdea6b yellow | e279c7 pink
ffcf77 light orange | 78e185 light green | 54d7c7 turquoise | f55d81 pink | ffd969 yellow
ffeead cream | 5bc0de light blue | 03396c dark blue | ff6f69 coral | ae0001 dark red
88d8b0 mint green | e8e9e6 white | 151613 black | d2eff3 pale blue | ac6651 brown
ffeba4 pale yellow | ffedef pale pink | 77311d brown | 6bd9e9 light blue | e0ddff lavender
fc909f pink | 9287ff purple | f9c9b6 peach | f4d150 yellow | f6d594 pale yellow | fcbc34 yellow
d84be5 purple | d9915b light brown | 059ff2 blue | 71cf62 green | f1f4dc cream | 69d2e7 light blue
1c799f blue | 0a5b83 dark blue | f88c49 orange | d1ecf1 pale blue | 44c585 green | 2e1e05 brown
cc6192 pink | a62116 red | 3d8a6b green | 614f8a purple | 2663a3 blue | 989789 gray
"""

# Attribute, its part of the portrait, where its colour is, and words for its values by pattern.
# An empty brace stands for the colour; a value without words is not spoken of.
_RULES = """
adventurer hair hair hairColor: short19 a bald head | short15 a {} mohawk | short16 spiky {} hair
adventurer hair hair hairColor: short(03|17|18) curly {} hair | short12 a {} tuft of hair
adventurer hair hair hairColor: short.* short {} hair | long15 {} pigtails | long16 a {} braid
adventurer hair hair hairColor: long(19|14) a {} ponytail | long(10|11|12|13) pinned-up {} hair
adventurer hair hair hairColor: long(03|08) {} hair with a flower wreath | long23 {} hair buns
adventurer hair hair hairColor: long(02|21) {} hair | long.* long {} hair
adventurer features extra: freckles freckles | blush rosy cheeks | mustache a mustache
adventurer features extra: birthmark a birthmark
adventurer glasses glasses: .* glasses
adventurer earrings extra: .* earrings
big-ears hair hair hairColor: short09 long straight {} hair | long05 {} hair buns
big-ears hair hair hairColor: long06 {} hair in a bun | long1[67] {} pigtails
big-ears hair hair hairColor: long01 thick {} hair
big-ears hair hair hairColor: short(03|04|10|12|19) spiky {} hair | short(06|18|01) messy {} hair
big-ears hair hair hairColor: long.* long {} hair | short.* short {} hair
big-ears cheek extra: .* rosy cheeks
big-smile hair hair hairColor: shortHair short {} hair | bunHair {} hair in a bun
big-smile hair hair hairColor: halfShavedHead half-shaved {} hair | bowlCutHair a {} bowl cut
big-smile hair hair hairColor: froBun {} afro hair in a bun | straightHair straight {} hair
big-smile hair hair hairColor: mohawk a {} mohawk | braids {} braids | wavyBob a wavy {} bob
big-smile hair hair hairColor: curlyShortHair short curly {} hair | curlyBob a curly {} bob
big-smile hair hair hairColor: shavedHead a shaved head | bangs {} hair with bangs
big-smile accessories glasses: sunglasses sunglasses | glasses glasses | sleepMask a sleep mask
big-smile accessories extra: clownNose a clown nose | sailormoonCrown a tiara | mustache a mustache
big-smile accessories extra: faceMask a face mask | catEars cat ears
big-smile mouth look: gapSmile a gap-toothed smile | openedSmile an open smile | braces braces
big-smile mouth look: openSad an open sad mouth | teethSmile a toothy smile
big-smile mouth look: awkwardSmile an awkward smile | unimpressed an unimpressed look
big-smile mouth look: kawaii a tiny smile
big-smile eyes extra: starstruck star eyes | sleepy sleepy eyes | sad sad eyes | angry angry eyes
big-smile eyes extra: winking a wink
croodles top hair topColor: variant(01|04|29) short {} hair | variant(02|06|09) spiky {} hair
croodles top hair topColor: variant(05|10) short curly {} hair | variant(11|18) curly {} hair
croodles top hair topColor: variant(12|13|14|17) long {} hair | variant15 a {} ponytail
croodles top hair topColor: variant16 {} pigtails | variant20 a {} hat | variant21 a {} beanie
croodles top hair topColor: variant22 a {} graduation cap | variant24 a {} beret
croodles top hair topColor: variant(23|25) a {} cap | variant28 a bald head
croodles top hair topColor: variant(03|19|07|08) short {} hair | variant(26|27) thin {} hair
croodles beard beard: .* a beard
croodles mustache beard: .* a mustache
dylan hair hair hairColor: spiky spiky {} hair | bangs {} hair with bangs | plain short {} hair
dylan hair hair hairColor: flatTop a {} flat top | buns {} hair buns | roundBob a round {} bob
dylan hair hair hairColor: fluffy fluffy {} hair | shaggy shaggy {} hair
dylan hair hair hairColor: shortCurls short curly {} hair | parting parted {} hair
dylan hair hair hairColor: longCurls long curly {} hair | wavy wavy {} hair
dylan facialHair beard: .* stubble
dylan mood look: angry an angry look | happy a happy look | superHappy a very happy look
dylan mood look: confused a confused look | hopeful a hopeful look | sad a sad look
fun-emoji eyes glasses: glasses glasses | shades sunglasses | love heart eyes | stars star eyes
fun-emoji eyes extra: wink2? a wink | tearDrop a teardrop | crying tears | closed2? closed eyes
fun-emoji eyes extra: sleepClose sleeping eyes
fun-emoji mouth look: shy a shy smile | cute a small smile | wideSmile a wide smile
fun-emoji mouth look: tongueOut its tongue out | drip a drooling mouth | sad a frown
fun-emoji mouth look: lilSmile a little smile | pissed an unhappy mouth | smileTeeth a toothy smile
fun-emoji mouth look: smileLol a laughing mouth | shout a shouting mouth | plain a straight mouth
fun-emoji mouth look: faceMask a face mask | sick a thermometer | kissHeart a kiss and a heart
lorelei hairAccessories hair: flowers flowers in the hair
lorelei earrings extra: .* earrings
lorelei freckles extra: .* freckles
lorelei beard beard: .* a beard
lorelei glasses glasses: .* glasses
lorelei mouth look: happy.* a happy face | sad.* a sad face
micah hair hair hairColor: dannyPhantom straight {} hair | pixie a {} bob | full long wavy {} hair
micah hair hair hairColor: turban a {} turban | fonze a {} quiff | mrClean a bald head
micah hair hair hairColor: mrT a {} mohawk | dougFunny a nearly bald head
micah glasses glasses: square square glasses | round round glasses
micah facialHair beard: beard a beard | scruff stubble
micah earrings extra: stud stud earrings | hoop hoop earrings
micah mouth look: smile a smile | surprised a surprised mouth | frown a frown | smirk a smirk
micah mouth look: laughing a laughing mouth | nervous a nervous mouth | sad a sad mouth
micah mouth look: pucker puckered lips
micah shirt wear shirtColor: crew a {} crew-neck shirt | open a {} open shirt
micah shirt wear shirtColor: collared a {} collared shirt
miniavs hair hair hairColor: long long {} hair | elvis a {} quiff | balndess a shaved head
miniavs hair hair hairColor: classic.* short {} hair | stylish swept {} hair | curly curly {} hair
miniavs hair hair hairColor: ponyTail a {} ponytail | slaughter balding {} hair
miniavs glasses glasses: .* round glasses
miniavs mustache beard: .* a mustache
miniavs blushes extra: .* rosy cheeks
miniavs mouth look: missingTooth a missing tooth
miniavs body wear bodyColor: .* a {} shirt
notionists beard beard: .* a beard
notionists glasses glasses: .* glasses
notionists gesture extra: handPhone a phone in the hand | ok.* an ok gesture
notionists gesture extra: point.* a pointing hand
notionists gesture extra: wave.* a waving hand | hand a raised hand
open-peeps head hair headContrastColor: bangs {} hair with bangs | grayBun {} hair in a bun
open-peeps head hair headContrastColor: grayMedium medium-length {} hair | grayShort short {} hair
open-peeps head hair headContrastColor: mediumBangs2 wavy {} hair with bangs | mohawk2? a {} mohawk
open-peeps head hair headContrastColor: short4 swept {} hair | noHair3 balding {} hair
open-peeps head hair headContrastColor: cornrows {} braids | noHair[12] a bald head
open-peeps head hair: afro a black afro | longAfro a large black afro | bangs2 a black bob
open-peeps head hair: bantuKnots black bantu knots | bear a bear hat | bun2? black hair in a bun
open-peeps head hair: buns black hair buns | cornrows2 black cornrows | dreads. black dreadlocks
open-peeps head hair: flatTop.* a black flat top | hatBeanie a beanie | hatHip a black hat
open-peeps head hair: hijab a black hijab | turban a turban | pomp a black pompadour
open-peeps head hair: long(Bangs)? long black hair | longCurly long curly black hair
open-peeps head hair: medium.* medium-length black hair | shaved3 messy black hair
open-peeps head hair: (shaved|short). short black hair | twists2? short black twists
open-peeps accessories glasses: sunglasses.* sunglasses | glasses.* glasses | eyepatch an eyepatch
open-peeps facialHair beard: full.* a full beard | goatee.* a goatee | moustache.* a mustache
open-peeps facialHair beard: chin a chin beard
open-peeps mask extra: respirator a respirator mask | medicalMask a medical mask
open-peeps face look: smile.* a smile | veryAngry a very angry face | angryWithFang an angry face
open-peeps face look: rage a furious face | fear a frightened face | calm a calm face
open-peeps face look: serious a serious face | eyesClosed closed eyes | tired a tired face
open-peeps face look: lovingGrin. a loving grin | suspicious a suspicious face | cute a cute face
open-peeps face look: cheeky a cheeky face | awe an amazed face | concerned.* a worried face
open-peeps face look: cyclops a single eye | monster a monster face | old an old face
open-peeps clothing wear clothingColor: .* {} clothes
personas hair hair hairColor: curlyHighTop a curly {} high top | curly curly {} hair
personas hair hair hairColor: long long {} hair | buzzcut a {} buzz cut
personas hair hair hairColor: bobBangs a {} bob with bangs
personas hair hair hairColor: sideShave side-shaved {} hair | pigtails {} pigtails
personas hair hair hairColor: bobCut a {} bob
personas hair hair hairColor: balding balding {} hair | extraLong very long {} hair
personas hair hair hairColor: beanie a beanie | cap a cap
personas hair hair hairColor: bunUndercut a {} bun | mohawk a {} mohawk
personas hair hair hairColor: curlyBun curly {} hair in a bun | straightBun {} hair in a bun
personas hair hair hairColor: shortCombover.* short combed {} hair | bald a bald head
personas hair hair hairColor: fade a {} fade haircut
personas eyes glasses: glasses glasses | sunglasses sunglasses
personas eyes extra: wink a wink | sleep closed eyes
personas facialHair beard: walrus a walrus mustache | goatee a goatee | shadow stubble
personas facialHair beard: beardMustache a full beard | pyramid a mustache | soulPatch a soul patch
personas mouth look: smile a smile | bigSmile a big smile | frown a frown | smirk a smirk
personas mouth look: surprise a surprised mouth | pacifier a pacifier
personas body wear clothingColor: checkered a checkered {} shirt | .* a {} shirt
pixel-art hair hair hairColor: short(05|21) a {} mohawk | short(11|13) curly {} hair
pixel-art hair hair hairColor: short18 balding {} hair | short(07|12|20|23|24) very short {} hair
pixel-art hair hair hairColor: long15 curly {} hair | long.* long {} hair | short.* short {} hair
pixel-art hat hat hatColor: .* a {} hat
pixel-art glasses glasses: dark.* dark glasses | light.* glasses
pixel-art beard beard: .* a beard
pixel-art accessories extra: .* earrings
pixel-art mouth look: happy.* a happy face | sad.* a sad face
pixel-art clothing wear clothingColor: .* {} clothes
thumbs eyes glasses: variant1.* heart eyes | variant[27].* closed eyes | variant9.* a wink
thumbs eyes glasses: variant3.* squinting eyes | variant4.* happy eyes
thumbs eyes glasses: variant[58].* small round eyes
thumbs eyes glasses: variant6.* oval eyes
thumbs mouth look: variant[12] a big open smile | variant[34] a smile | variant5 puckered lips
toon-head rearHair hair hairColor: longWavy long wavy {} hair | longStraight long straight {} hair
toon-head rearHair hair hairColor: shoulderHigh shoulder-length {} hair
toon-head rearHair hair hairColor: neckHigh neck-length {} hair
toon-head hair hair hairColor: undercut a {} undercut | bun {} hair in a bun | spiky spiky {} hair
toon-head hair hair hairColor: sideComed side-parted {} hair
toon-head beard beard: fullBeard a full beard | chin a chin beard | longBeard a long beard
toon-head beard beard: chinMoustache a mustache and a chin beard | moustacheTwirl a twirled mustache
toon-head beard beard: 
toon-head mouth look: agape an open mouth | sad a sad mouth
toon-head mouth look: smile a smile | laugh a laughing mouth
toon-head mouth look: angry an angry mouth
toon-head eyes extra: wink a wink
toon-head clothes wear clothesColor: turtleNeck a {} turtleneck | shirt a {} shirt
toon-head clothes wear clothesColor: dress a {} dress
toon-head clothes wear clothesColor: tShirt a {} t-shirt | openJacket a {} open jacket
"""

# Colour of the whole figure of styles that have no person in them, and what the figure is.
FIGURES: Mapping[str, tuple[str, str]] = {
    "fun-emoji": ("emoji face", "primaryBackgroundColor"),
    "thumbs": ("blob character", "shapeColor"),
}
_TONES = (
    (200, "light skin"),
    (170, "medium-light skin"),
    (130, "medium skin"),
    (85, "medium-dark skin"),
    (0, "dark skin"),
)
_SKIN_KEYS = ("skinColor", "baseColor")
_NO_SKIN = {"croodles", "lorelei", "notionists"}


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Words for the values of one attribute; ``part`` is what of a portrait it belongs to."""

    attribute: str
    part: str
    colour: str
    words: tuple[tuple[str, str], ...]


def _pairs(table: str) -> dict[str, str]:
    rows = (row.partition(" ") for row in re.split(r"\s*[|\n]\s*", table.strip()))
    return {key: words for key, _, words in rows}


def _rules() -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for line in _RULES.strip().splitlines():
        head, _, table = line.partition(": ")
        style, attribute, part, *colour = head.split()
        rules.setdefault(style, []).append(
            _Rule(
                attribute=attribute,
                part=part,
                colour=colour[0] if colour else "",
                words=tuple(_pairs(re.sub(r"\|(?! )", "\0", table)).items()),
            )
        )
    return rules


_HAIR_WORDS, _CLOTHES_WORDS, _STYLE_RULES = _pairs(_HAIR), _pairs(_CLOTHES), _rules()


@functools.cache
def colour_word(value: str, part: str) -> str:
    """The word for a colour like "#ffc700" of hair or clothes; empty if it has none."""
    code = value.lstrip("#").lower()
    own = _HAIR_WORDS if part == "hair" else _CLOTHES_WORDS
    if code in own:
        return own[code]
    if not re.fullmatch("[0-9a-f]{6}", code):
        return ""
    rgb = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)]], dtype=np.uint8)
    index = int(name_pixels(rgb)[0])
    return WORDS[index] if index < len(WORDS) else ""


def skin_tone(value: object) -> str:
    """The word for a skin colour like "#ecad80" by its luma, of Rec. 601."""
    code = str(value or "").lstrip("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", code):
        return ""
    red, green, blue = (int(code[i : i + 2], 16) for i in (0, 2, 4))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return next(words for least, words in _TONES if luma >= least)


@functools.cache
def _said(rule: _Rule, value: str, colour: str) -> str:
    for pattern, words in rule.words:
        if re.fullmatch(pattern.replace("\0", "|"), value):
            if "{}" not in words:
                return words
            word = colour_word(str(colour or ""), "hair" if rule.part == "hair" else "wear")
            if rule.part == "wear" and not word:
                return ""
            named = words.replace("a {}", article(word) if word else "a").replace("{}", word)
            return " ".join(named.split())
    return ""


def avatar_parts(style: str, extra: Mapping[str, object]) -> dict[str, list[str]]:
    """What is to be said of an avatar, by part: hair, hat, beard, glasses, look, wear, extra, skin.

    ``extra`` are the attributes it was drawn with; absent ones and those that have no words are
    left out.
    """
    parts: dict[str, list[str]] = {}
    for rule in _STYLE_RULES.get(style, ()):
        value = extra.get(rule.attribute)
        if rule.attribute in ("clothing", "body") and not value:
            value = "default"
        if not value or (rule.part == "hair" and "hair" in parts):
            continue
        if words := _said(rule, str(value), str(extra.get(rule.colour) or "")):
            parts.setdefault(rule.part, []).append(words)
    if style not in _NO_SKIN and style not in FIGURES:
        tone = next((skin_tone(extra[key]) for key in _SKIN_KEYS if extra.get(key)), "")
        if tone:
            parts["skin"] = [f"{tone}"]
    return parts
