"""Which pictures a model never sees in training: whole concepts, and styles of known concepts."""

from __future__ import annotations

import hashlib
import re

HELD_PART = 0.05

# What everybody asks for first: never held out as a concept.
_PROTECTED = """
red apple | green apple | apple | cat | cat face | dog | dog face | star | house
house with garden | tree | pine tree | deciduous tree | evergreen tree | palm tree | automobile
car | sport utility vehicle | red heart | heart | blue heart | green heart | yellow heart
purple heart | pizza | rocket | umbrella | umbrella with rain drops | snowman
snowman without snow | guitar | banana | strawberry | watermelon | lemon | grapes | cherries
tangerine | peach | pineapple | carrot | tomato | hamburger | hot dog | doughnut | cookie
birthday cake | ice cream | soft ice cream | bread | egg | hot beverage | fish | tropical fish
bird | duck | chicken | owl | penguin | horse | horse face | cow | cow face | pig | pig face
rabbit | rabbit face | mouse | mouse face | bear | panda | lion | tiger | tiger face | elephant
monkey | monkey face | fox | frog | turtle | snake | butterfly | honeybee | lady beetle | dolphin
whale | spouting whale | shark | octopus | unicorn | dragon | dragon face | bus | delivery truck
bicycle | motorcycle | airplane | helicopter | sailboat | ship | locomotive | train
fire engine | police car | taxi | tractor | sun | crescent moon | full moon | cloud | rainbow
snowflake | fire | flame | droplet | drop | rose | tulip | sunflower | flower | cherry blossom
cactus | mushroom | four leaf clover | leaf | castle | church | mountain | volcano | key | locked
padlock | bell | clock | alarm clock | book | closed book | pencil | scissors | hammer | camera
television | telephone | mobile phone | laptop | light bulb | candle | chair | bed | door
crown | top hat | glasses | t shirt | dress | high heeled shoe | running shoe | backpack | handbag
gem stone | ring | trophy | soccer ball | basketball | balloon | wrapped gift | teddy bear
violin | drum | trumpet | musical note | ghost | robot | alien | skull | pumpkin | jack o lantern
grinning face | smiling face with sunglasses | smiling face with heart eyes | crying face
angry face | face with tears of joy | thinking face | circle | square | triangle | red circle
blue circle | suv | bee | ladybug | donut | gift | gem | ice cream cone | cup of coffee
lightning bolt | high heel | sneaker | four-leaf clover | high-heeled shoe | t-shirt | music note
jack-o'-lantern | open padlock | baby chick | bowl of noodles | bowl of rice | slice of cake
tennis ball | football | baseball cap | game controller | magnifying glass | palette | drop
"""
PROTECTED = frozenset(re.split(r"\s*[|\n]\s*", _PROTECTED.strip()))


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def is_protected(concept: str) -> bool:
    """Whether a concept is never held out: nobody can guess a flag that was never seen."""
    return concept in PROTECTED or concept.startswith("flag of ")


def split_of(concept: str, variant: str) -> str:
    """The split of a picture of ``concept`` in a style or colour ``variant``.

    A held concept is held in every variant; of the others, each pair is held by itself.
    """
    if not is_protected(concept) and fraction(f"concept:{concept}") < HELD_PART:
        return "held_concept"
    return "held_style" if fraction(f"pair:{concept}:{variant}") < HELD_PART else "train"
