"""English for concepts: what people call them for short, and how a sentence puts them."""

from __future__ import annotations

from collections.abc import Mapping

# Concept: other everyday names, the best one first.
_ALIASES = """
1st place medal: gold medal
2nd place medal: silver medal
3rd place medal: bronze medal
airplane: plane
alien monster: space invader
american football: football
angry face: mad face
articulated lorry: truck
artist palette: palette
automobile: car
baby chick: chick
baguette bread: baguette
baseball: ball
basketball: ball
beer mug: beer, glass of beer
bicycle: bike
billed cap: cap, baseball cap
birthday cake: cake, cake with candles
black bird: bird
black cat: cat
blossom: flower
boar: wild pig
books: stack of books
bouquet: bunch of flowers
bow and arrow: bow
bread: loaf of bread
broken heart: cracked heart
bubble tea: boba tea
bug: caterpillar
bullet train: train
bust in silhouette: person
canoe: boat
cheese wedge: cheese, piece of cheese
cherry blossom: pink flower, flower
chicken: hen, chicken head
chocolate bar: chocolate
christmas tree: decorated tree
classical building: temple
clinking beer mugs: two beers
clinking glasses: two glasses
closed book: book
cloud with lightning: storm cloud
cloud with rain: rain cloud
cloud with snow: snow cloud
clown face: clown
cocktail glass: martini
cooked rice: bowl of rice
cooking: fried egg
couch and lamp: couch, sofa
cowboy hat face: cowboy
crescent moon: moon
crocodile: alligator
crossed swords: two swords
crying face: sad face
crystal ball: magic ball
cup with straw: soda cup
curry rice: plate of curry
cut of meat: steak
dagger: knife
deciduous tree: tree, leafy tree
delivery truck: truck
desert island: island
desktop computer: computer, computer screen
doughnut: donut
dove: white bird
droplet: drop of water, water drop
ear of corn: corn
eggplant: aubergine
enraged face: very angry face
envelope: letter
evergreen tree: pine tree, tree
ewe: sheep
exploding head: mind blown face
face with tears of joy: laughing face
ferris wheel: fairground wheel
fire: flame
fire engine: fire truck
flying saucer: ufo
fork and knife: cutlery
four leaf clover: clover
french fries: fries
fried shrimp: shrimp
front facing baby chick: chick
frowning face: sad face
full moon: moon
game die: dice, die
gem stone: diamond, gem
glass of milk: milk
glasses: pair of glasses
globe showing americas: earth, globe
globe showing asia australia: earth, globe
globe showing europe africa: earth, globe
globe with meridians: globe
gloves: pair of gloves
glowing star: star
graduation cap: academic cap
grapes: bunch of grapes
green salad: salad
grinning face: happy face, smiley face
guide dog: dog
hatching chick: chick in an egg
headphone: headphones
hibiscus: flower
high heeled shoe: high heel
high speed train: train
high voltage: lightning bolt, lightning
hiking boot: boot
hippopotamus: hippo
honeybee: bee
hot beverage: cup of coffee, cup of tea
hot pepper: chili pepper, red pepper
house with garden: house
hundred points: 100
ice cream: bowl of ice cream
jack o lantern: pumpkin, carved pumpkin
jeans: pair of jeans
kick scooter: scooter
kitchen knife: knife
kiwi fruit: kiwi
lady beetle: ladybug, ladybird
leafless tree: bare tree
light bulb: bulb
locked: padlock, lock
locomotive: steam train
lotion bottle: bottle
loudly crying face: sobbing face
magic wand: wand
magnifying glass tilted left: magnifying glass
magnifying glass tilted right: magnifying glass
man's shoe: shoe, leather shoe
meat on bone: meat
memo: note and pencil
military medal: medal
milky way: night sky
mobile phone: smartphone, phone
motor boat: boat
motor scooter: scooter
motorcycle: motorbike
mount fuji: mountain
musical note: music note
ok hand: ok gesture
old key: antique key
oncoming automobile: car, front view of a car
oncoming bus: bus
oncoming police car: police car
oncoming taxi: taxi
open book: book
ox: bull
paintbrush: brush
palm tree: palm
pancakes: stack of pancakes
passenger ship: ship, cruise ship
paw prints: paw print
person in lotus position: meditating person
pile of poo: poop
pizza: slice of pizza
pot of food: stew
potted plant: plant in a pot
poultry leg: chicken leg
puzzle piece: jigsaw piece
rabbit: bunny
racing car: race car
red apple: apple
red heart: heart
rescue worker's helmet: hard hat
rhinoceros: rhino
ringed planet: planet, saturn
roll of paper: toilet paper
roller coaster: coaster
rose: flower
running shoe: sneaker, shoe
safety pin: pin
sailboat: boat, sailing boat
sauropod: dinosaur
scissors: pair of scissors
service dog: dog
shallow pan of food: paella
shaved ice: bowl of shaved ice
shooting star: falling star
shortcake: slice of cake
sleeping face: face asleep
slightly smiling face: smile, smiley face
small airplane: airplane
smiling face with heart eyes: face in love
smiling face with smiling eyes: happy face
smiling face with sunglasses: cool face
snow capped mountain: mountain
snowman without snow: snowman
soccer ball: football, ball
socks: pair of socks
soft ice cream: ice cream cone
spaghetti: plate of pasta, pasta
speedboat: boat
spider web: web
sport utility vehicle: suv, car
sports medal: medal
spouting whale: whale
steaming bowl: bowl of noodles, ramen
sun behind cloud: sun and cloud
sun with face: smiling sun
sunflower: flower
t rex: dinosaur
t shirt: shirt
tangerine: orange, orange fruit
taxi: cab
teddy bear: plush bear
telephone: phone
television: tv, old tv
tennis: tennis ball
thumbs up: thumb up
top hat: magician's hat
tram car: tram
trash can: bin
tropical drink: cocktail
tropical fish: fish
tulip: flower
two hump camel: camel
umbrella on ground: beach umbrella
umbrella with rain drops: umbrella in the rain
unlocked: open padlock
video game: game controller
wastebasket: bin, trash can
water pistol: water gun
wine glass: glass of wine, red wine
woman's boot: boot
woman's clothes: blouse
woman's hat: sun hat
woman's sandal: sandal
worm: earthworm
wrapped gift: gift, present
writing hand: hand with a pen
"""

# Concept: the words for it in a sentence, where its name is no noun or needs more than "a".
_PHRASES = """
a button blood type: a button with the letter a
ab button blood type: a button with the letters ab
b button blood type: a button with the letter b
badminton: a badminton racket
baggage claim: a baggage claim sign
biohazard: a biohazard sign
bowling: a bowling ball and pins
breast feeding: a woman breastfeeding a baby
bright button: a bright sun button
building construction: a building under construction
camping: a campsite with a tent
children crossing: a children crossing sign
cinema: a cinema sign
circled m: a circled letter m
cl button: a button with the letters cl
collision: an explosion
construction: a road construction barrier
cooking: a fried egg in a pan
cool button: a button with the word cool
coral: coral
couple with heart of man and man: two men with a heart
couple with heart of woman and man: a woman and a man with a heart
couple with heart of woman and woman: two women with a heart
cricket game: a cricket bat and ball
currency exchange: a currency exchange symbol
customs: a customs sign
dashing away: a puff of wind
dim button: a dim sun button
divide: a division sign
dizzy: a dizzy star
e mail: an email
face savoring food: a face licking its lips
face vomiting: a vomiting face
field hockey: a field hockey stick and ball
fleur de lis: a fleur-de-lis
fog: fog over a bridge
foggy: a foggy bridge
four leaf clover: a four-leaf clover
free button: a button with the word free
front facing baby chick: a baby chick facing front
globe showing americas: a globe showing the americas
golfing: a golf player
hammer and pick: a crossed hammer and pick
head shaking horizontally: a face shaking its head
head shaking vertically: a nodding face
high heeled shoe: a high-heeled shoe
high voltage: a lightning bolt
horse racing: a jockey on a horse
hourglass done: an hourglass
hourglass not done: an hourglass with flowing sand
hundred points: a red number 100
ice: an ice cube
ice hockey: an ice hockey stick and puck
id button: a button with the letters id
infinity: an infinity symbol
information: an information sign
jack o lantern: a jack-o'-lantern
kiss: a kissing couple
kiss of man and man: two men kissing
kiss of woman and man: a man and a woman kissing
kiss of woman and woman: two women kissing
lacrosse: a lacrosse stick and ball
landslide: a landslide on a mountain
left luggage: a left luggage sign
light rail: a light rail train
locked: a closed padlock
locked with key: a padlock with a key
locked with pen: a padlock with a pen
lotus: a lotus flower
mate: a cup of mate tea
men holding hands: two men holding hands
mending heart: a bandaged heart
metro: a metro train
milky way: the milky way in the night sky
minus: a minus sign
mobile phone off: a phone off sign
mount fuji: mount fuji
multiply: a multiplication sign
new button: a button with the word new
ng button: a button with the letters ng
no bicycles: a no bicycles sign
no entry: a no entry sign
no littering: a no littering sign
no mobile phones: a no mobile phones sign
no one under eighteen: a no one under eighteen sign
no pedestrians: a no pedestrians sign
no smoking: a no smoking sign
non potable water: a no drinking water sign
o button blood type: a button with the letter o
ok button: a button with the word ok
om: an om symbol
p button: a button with the letter p
passport control: a passport control sign
people holding hands: two people holding hands
performing arts: theater masks
pick: a pickaxe
ping pong: a ping pong paddle
plus: a plus sign
potable water: a drinking water sign
pouring liquid: a glass pouring liquid
prohibited: a prohibition sign
radioactive: a radioactive sign
rolling on the floor laughing: a face rolling with laughter
rugby football: a rugby ball
sake: a sake bottle and cup
selfie: a hand taking a selfie
shallow pan of food: a pan of paella
skis: a pair of skis
snow capped mountain: a snow-capped mountain
sos button: a button with the letters sos
speaker high volume: a speaker at high volume
speaker low volume: a speaker at low volume
speaker medium volume: a speaker at medium volume
splatter: a paint splatter
star struck: a star-struck face
statue of liberty: the statue of liberty
sunrise: a sunrise over the sea
sunset: a sunset behind buildings
t rex: a t-rex
t shirt: a t-shirt
tennis: a tennis ball
tokyo tower: tokyo tower
two hump camel: a two-hump camel
unlocked: an open padlock
up button: a button with the word up
vibration mode: a vibrating phone sign
vs button: a button with the letters vs
warning: a warning sign
water closet: a wc sign
wedding: a wedding chapel
wind face: a cloud blowing wind
wireless: a wireless symbol
woman and man holding hands: a woman and a man holding hands
women holding hands: two women holding hands
wood: a wooden log
x ray: an x-ray
yo yo: a yo-yo
zzz: the letters zzz
"""


def _rows(table: str) -> dict[str, str]:
    """Lines of "concept: text" as a dictionary."""
    pairs = (line.partition(": ") for line in table.strip().splitlines())
    return {concept: text for concept, _, text in pairs}


ALIASES: Mapping[str, tuple[str, ...]] = {
    concept: tuple(text.split(", ")) for concept, text in _rows(_ALIASES).items()
}
PHRASES: Mapping[str, str] = _rows(_PHRASES)
