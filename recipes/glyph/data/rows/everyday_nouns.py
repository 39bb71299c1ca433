"""The nouns everybody asks for first, and the single-colour drawings that show them best."""

from __future__ import annotations

from collections.abc import Mapping

# Noun -> icons that draw it. White is left out: it would vanish on the usual background.
_NOUNS = """
star mdi:star ph:star-fill | heart mdi:heart ph:heart-fill | car mdi:car ph:car-fill
house mdi:home game-icons:house | tree mdi:tree ph:tree-fill | pine tree mdi:pine-tree
circle mdi:circle game-icons:circle | square mdi:square ph:square-fill game-icons:square
triangle mdi:triangle ph:triangle-fill | hexagon mdi:hexagon | diamond mdi:diamond ph:diamond-fill
cube mdi:cube game-icons:cube | crescent moon ph:moon-fill game-icons:moon
cloud mdi:cloud ph:cloud-fill | sun ph:sun-fill game-icons:sun
lightning bolt mdi:lightning-bolt ph:lightning-fill | snowflake mdi:snowflake
drop mdi:water ph:drop-fill | flame mdi:fire ph:fire-fill | umbrella mdi:umbrella ph:umbrella-fill
key mdi:key ph:key-fill | padlock mdi:lock ph:lock-fill | bell mdi:bell ph:bell-fill
cup mdi:coffee ph:coffee-fill | teapot game-icons:teapot | wine glass game-icons:wine-glass
leaf mdi:leaf ph:leaf-fill | clover mdi:clover ph:clover-fill | flower mdi:flower ph:flower-fill
tulip mdi:flower-tulip ph:flower-tulip-fill | rose game-icons:rose | sunflower game-icons:sunflower
cactus mdi:cactus ph:cactus-fill | mushroom mdi:mushroom game-icons:mushroom
fish mdi:fish ph:fish-fill | shark mdi:shark | dolphin mdi:dolphin | octopus game-icons:octopus
jellyfish mdi:jellyfish | bird mdi:bird ph:bird-fill | duck mdi:duck game-icons:duck
rooster game-icons:rooster | owl mdi:owl game-icons:owl | penguin mdi:penguin game-icons:penguin
cat mdi:cat ph:cat-fill game-icons:cat | dog mdi:dog ph:dog-fill | paw print mdi:paw
rabbit game-icons:rabbit ph:rabbit-fill | horse mdi:horse ph:horse-fill
cow mdi:cow ph:cow-fill | pig mdi:pig game-icons:pig | sheep mdi:sheep
elephant mdi:elephant | turtle mdi:turtle game-icons:turtle | snail mdi:snail
snake mdi:snake | frog game-icons:frog | butterfly mdi:butterfly ph:butterfly-fill
bee mdi:bee | spider mdi:spider | ant game-icons:ant | dragon game-icons:dragon-head
rocket mdi:rocket ph:rocket-fill | airplane mdi:airplane ph:airplane-fill
helicopter mdi:helicopter | ship mdi:ferry | sailboat mdi:sail-boat game-icons:sailboat
anchor mdi:anchor | bicycle mdi:bicycle ph:bicycle-fill
motorcycle mdi:motorbike ph:motorcycle-fill
bus mdi:bus game-icons:bus | truck mdi:truck game-icons:truck | tractor mdi:tractor ph:tractor-fill
train mdi:train ph:train-fill | guitar mdi:guitar-acoustic ph:guitar-fill game-icons:guitar
violin mdi:violin game-icons:violin | trumpet mdi:trumpet game-icons:trumpet | drum game-icons:drum
music note mdi:music-note | camera mdi:camera ph:camera-fill | television ph:television-fill
telephone mdi:phone ph:phone-fill | laptop mdi:laptop | lamp mdi:lamp ph:lamp-fill
light bulb mdi:lightbulb ph:lightbulb-fill | candle mdi:candle | chair ph:chair-fill
armchair ph:armchair-fill | sofa mdi:sofa game-icons:sofa | bed mdi:bed game-icons:bed
bathtub mdi:bathtub | door ph:door-fill | table game-icons:table | book mdi:book ph:book-fill
pencil mdi:pencil ph:pencil-fill | paintbrush mdi:brush | palette mdi:palette
scissors ph:scissors-fill game-icons:scissors | hammer mdi:hammer | wrench mdi:wrench ph:wrench-fill
axe mdi:axe | sword mdi:sword ph:sword-fill | shield mdi:shield game-icons:shield
bow and arrow mdi:bow-arrow | crown mdi:crown ph:crown-fill | top hat game-icons:top-hat
cowboy hat ph:cowboy-hat-fill | t-shirt ph:t-shirt-fill | dress ph:dress-fill
pants ph:pants-fill | boot ph:boot-fill | high heel mdi:shoe-heel game-icons:high-heel
sock ph:sock-fill | handbag ph:handbag-fill | backpack ph:backpack-fill | ring game-icons:ring
banana game-icons:banana | cherries mdi:fruit-cherries game-icons:cherry | grapes game-icons:grapes
pear game-icons:pear | strawberry game-icons:strawberry | pineapple game-icons:pineapple
watermelon game-icons:watermelon | carrot mdi:carrot ph:carrot-fill | corn mdi:corn
bread ph:bread-fill | cake mdi:cake ph:cake-fill | cookie ph:cookie-fill | cupcake mdi:cupcake
candy mdi:candy | ice cream mdi:ice-cream ph:ice-cream-fill | pizza mdi:pizza ph:pizza-fill
hamburger mdi:hamburger ph:hamburger-fill | egg mdi:egg | cheese mdi:cheese | castle mdi:castle
church mdi:church ph:church-fill | bridge mdi:bridge game-icons:bridge | lighthouse mdi:lighthouse
tent mdi:tent ph:tent-fill | barn mdi:barn ph:barn-fill | factory mdi:factory | flag ph:flag-fill
kite mdi:kite | balloon mdi:balloon ph:balloon-fill | gift mdi:gift ph:gift-fill
trophy mdi:trophy ph:trophy-fill | medal mdi:medal | puzzle piece ph:puzzle-piece-fill
game controller ph:game-controller-fill | robot mdi:robot ph:robot-fill
ghost mdi:ghost ph:ghost-fill
skull mdi:skull ph:skull-fill | pumpkin mdi:pumpkin game-icons:pumpkin | alien mdi:alien
snowman mdi:snowman game-icons:snowman | hand ph:hand-fill | eye mdi:eye | tooth mdi:tooth
bone mdi:bone | footprints mdi:shoe-print | magnifying glass game-icons:magnifying-glass
microscope mdi:microscope | telescope mdi:telescope | globe mdi:earth | compass mdi:compass
clock mdi:clock ph:clock-fill | hourglass ph:hourglass-fill | alarm clock mdi:alarm
volcano mdi:volcano | island mdi:island | rainbow ph:rainbow-fill | planet ph:planet-fill
basketball mdi:basketball ph:basketball-fill | soccer ball mdi:soccer ph:soccer-ball-fill
baseball mdi:baseball | mailbox mdi:mailbox | envelope mdi:email ph:envelope-fill
bucket mdi:bucket
broom mdi:broom | barrel game-icons:barrel | basket mdi:basket | spoon game-icons:spoon
knife mdi:knife | cooking pot game-icons:cooking-pot | fan mdi:fan | gear mdi:cog ph:gear-fill
flashlight mdi:flashlight | battery mdi:battery | magnet mdi:magnet | feather mdi:feather
acorn game-icons:acorn | bat mdi:bat game-icons:bat | wolf game-icons:wolf-head | fox game-icons:fox
deer game-icons:deer | monkey game-icons:monkey | gorilla game-icons:gorilla | lion game-icons:lion
tiger game-icons:tiger | crab game-icons:crab | shrimp ph:shrimp-fill | seahorse game-icons:seahorse
scorpion game-icons:scorpion | gecko game-icons:gecko | swan game-icons:swan
flamingo game-icons:flamingo | mouse game-icons:mouse | squirrel game-icons:squirrel
kangaroo game-icons:kangaroo | camel game-icons:camel | panda mdi:panda | koala mdi:koala
unicorn mdi:unicorn-variant | mermaid game-icons:mermaid | pirate mdi:pirate
ninja game-icons:ninja-head
"""


def _parse(table: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Rows of "noun set:icon set:icon", parted by bars and line ends, as a dictionary."""
    nouns: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in table.replace("\n", "|").split("|"):
        words = row.split()
        icons = [tuple(word.split(":", 1)) for word in words if ":" in word]
        if icons:
            noun = " ".join(word for word in words if ":" not in word)
            nouns[noun] = tuple((prefix, name) for prefix, name in icons)
    return nouns


NOUNS: Mapping[str, tuple[tuple[str, str], ...]] = _parse(_NOUNS)
