"""The small world that the demo model knows: animals, foods, places, weather, and a little small talk."""
import zlib

# name | size | colour | kind | place | home | food | sound | habit
ANIMALS = [line.split("|") for line in """
fox|small|red|animal|forest|in the forest|berries and mice|yip|hunts at dusk
bear|big|brown|animal|mountain|in the mountains|honey and fish|grr|sleeps all winter
wolf|big|grey|animal|forest|in the forest|deer and rabbits|howl|runs with its pack
rabbit|small|brown|animal|meadow|in the meadow|grass and carrots|squeak|digs long burrows
deer|big|brown|animal|forest|in the forest|leaves and grass|snort|leaps over fallen trees
squirrel|small|red|animal|forest|in the forest|nuts and seeds|chatter|hides nuts for the winter
hedgehog|small|brown|animal|garden|in the garden|worms and snails|sniff|rolls into a ball
owl|small|brown|bird|forest|in the forest|mice and frogs|hoot|flies without a sound
mouse|tiny|grey|animal|farm|on the farm|cheese and seeds|squeak|hides in small holes
badger|small|grey|animal|forest|in the forest|worms and roots|growl|digs deep tunnels
camel|big|brown|animal|desert|in the desert|thorns and dry grass|grunt|walks for days without water
lizard|small|green|animal|desert|in the desert|flies and ants|hiss|sleeps on warm stones
snake|small|green|animal|desert|in the desert|mice and eggs|hiss|sheds its old skin
whale|huge|blue|animal|sea|in the sea|krill and small fish|whoo|sings long songs
shark|huge|grey|fish|sea|in the sea|fish and seals|nothing|smells food from far away
dolphin|big|grey|animal|sea|in the sea|fish and squid|click|jumps over the waves
octopus|small|orange|animal|sea|in the sea|crabs and clams|nothing|has eight clever arms
crab|small|orange|animal|beach|on the beach|clams and seaweed|click|walks sideways
seal|big|grey|animal|beach|on the beach|fish and crabs|bark|rests on the rocks
turtle|big|green|animal|beach|on the beach|seaweed and jellyfish|nothing|carries its house on its back
penguin|small|black|bird|ice|on the ice|fish and krill|honk|slides on its belly
duck|small|white|bird|lake|on the lake|weeds and snails|quack|swims in a row
swan|big|white|bird|lake|on the lake|weeds and roots|hiss|glides over the water
frog|tiny|green|animal|lake|on the lake|flies and worms|croak|jumps from leaf to leaf
beaver|small|brown|animal|river|by the river|bark and twigs|splash|builds dams of wood
otter|small|brown|animal|river|by the river|fish and crabs|chirp|floats on its back
heron|big|grey|bird|river|by the river|fish and frogs|croak|stands still for hours
cow|big|white|animal|farm|on the farm|grass and hay|moo|gives fresh milk
pig|big|pink|animal|farm|on the farm|corn and apples|oink|rolls in the mud
hen|small|brown|bird|farm|on the farm|corn and worms|cluck|lays an egg each day
horse|big|brown|animal|farm|on the farm|hay and apples|neigh|gallops over the fields
sheep|big|white|animal|farm|on the farm|grass and clover|baa|gives soft wool
goat|small|white|animal|mountain|in the mountains|grass and leaves|maa|climbs steep rocks
donkey|big|grey|animal|farm|on the farm|hay and carrots|hee-haw|carries heavy bags
dog|small|brown|animal|village|in the village|meat and bones|woof|guards the house
cat|small|black|animal|village|in the village|fish and mice|meow|sleeps in the sun
lion|big|yellow|animal|grassland|in the grassland|zebras and deer|roar|rests under a tree
elephant|huge|grey|animal|grassland|in the grassland|leaves and fruit|toot|drinks with its trunk
giraffe|huge|yellow|animal|grassland|in the grassland|leaves and buds|hum|reaches the highest leaves
zebra|big|striped|animal|grassland|in the grassland|grass and leaves|bray|wears black and white stripes
monkey|small|brown|animal|jungle|in the jungle|bananas and nuts|ooh|swings from tree to tree
parrot|small|green|bird|jungle|in the jungle|seeds and fruit|squawk|repeats what it hears
tiger|big|orange|animal|jungle|in the jungle|deer and pigs|roar|hunts alone at night
bee|tiny|yellow|insect|garden|in the garden|nectar and pollen|buzz|makes sweet honey
butterfly|tiny|blue|insect|meadow|in the meadow|nectar and fruit|nothing|dances over the flowers
ant|tiny|black|insect|garden|in the garden|seeds and crumbs|nothing|carries more than its weight
spider|tiny|black|animal|cave|in the cave|flies and moths|nothing|spins a silver web
snail|tiny|brown|animal|garden|in the garden|leaves and lettuce|nothing|leaves a shiny path
bat|small|black|animal|cave|in the cave|moths and fruit|eek|sleeps upside down
eagle|big|brown|bird|mountain|in the mountains|rabbits and fish|screech|sees a mouse from the clouds
""".strip().splitlines()]

# name | colour | kind | taste | source; a leading * marks a mass noun (no article)
FOODS = [line.split("|") for line in """
apple|red|fruit|sweet and crisp|grows on a tree
banana|yellow|fruit|sweet and soft|grows in warm lands
lemon|yellow|fruit|very sour|grows on a tree
cherry|red|fruit|sweet and juicy|grows on a tree
grape|green|fruit|sweet and fresh|grows on a vine
strawberry|red|fruit|sweet and fresh|grows close to the ground
tomato|red|fruit|fresh and mild|grows in the garden
carrot|orange|vegetable|sweet and crunchy|grows under the ground
potato|brown|vegetable|mild and soft|grows under the ground
pumpkin|orange|vegetable|mild and nutty|grows in the field
onion|white|vegetable|sharp and strong|grows under the ground
pepper|green|vegetable|fresh and hot|grows in the garden
mushroom|white|food|earthy and mild|grows in the damp forest
egg|white|food|mild and rich|comes from a hen
*honey|yellow|food|very sweet|is made by bees
*cheese|yellow|food|salty and rich|is made from milk
*bread|brown|food|warm and plain|is made from flour
*milk|white|drink|mild and creamy|comes from a cow
*butter|yellow|food|rich and creamy|is made from milk
*rice|white|food|mild and plain|grows in wet fields
*chocolate|brown|food|sweet and a little bitter|is made from cocoa beans
*tea|brown|drink|warm and a little bitter|is made from dried leaves
*soup|orange|food|warm and salty|is cooked in a big pot
*salt|white|food|very salty|comes from the sea
""".strip().splitlines()]

# name | looks | weather | home phrase
PLACES = [line.split("|") for line in """
forest|quiet and full of tall trees|cool and damp|in the forest
desert|a dry land of sand and stones|very hot and dry|in the desert
sea|deep, blue and full of fish|windy and fresh|in the sea
beach|a strip of sand beside the sea|sunny and windy|on the beach
lake|calm, clear and round|mild and misty|on the lake
river|a long stream of cold water|fresh and mild|by the river
mountain|high, steep and full of rocks|cold and snowy|in the mountains
farm|a busy home with barns and fields|mild and sunny|on the farm
garden|full of flowers and green plants|warm and sunny|in the garden
jungle|thick, green and full of vines|hot and rainy|in the jungle
grassland|wide, flat and covered with grass|hot and dry|in the grassland
cave|a dark room inside the rock|cool and still|in the cave
village|a small group of old houses|mild and rainy|in the village
meadow|open, soft and full of flowers|warm and bright|in the meadow
ice|smooth, white and very cold|freezing and windy|on the ice
""".strip().splitlines()]

# name | what it is | when | advice
WEATHER = [line.split("|") for line in """
rain|water that falls from grey clouds|it rains|take an umbrella
snow|soft white ice that falls in winter|it snows|wear warm boots
wind|air that moves over the land|it is windy|hold on to your hat
fog|a cloud that lies on the ground|it is foggy|walk slowly
thunder|the loud voice of a storm|it thunders|stay inside the house
hail|small balls of ice from the sky|it hails|find a roof
frost|thin ice that covers the grass|it is frosty|wear a thick scarf
sunshine|the warm light of the sun|it is sunny|wear a hat
""".strip().splitlines()]

PLURAL = {"wolf": "wolves", "deer": "deer", "mouse": "mice", "sheep": "sheep", "fox": "foxes", "octopus": "octopuses",
          "butterfly": "butterflies", "strawberry": "strawberries", "cherry": "cherries", "tomato": "tomatoes",
          "potato": "potatoes", "ostrich": "ostriches"}
SIZES = ["tiny", "small", "big", "huge"]
COLOURS = sorted({a[2] for a in ANIMALS} | {f[1] for f in FOODS})
ANIMAL = {a[0]: a for a in ANIMALS}
FOOD = {f[0].strip("*"): f for f in FOODS}
PLACE = {p[0]: p for p in PLACES}


def pick(options, *key):
    """The same choice every time for the same key (Python's own hash changes from run to run)."""
    return options[zlib.crc32("/".join(map(str, key)).encode()) % len(options)]


def cap(s):
    return s[:1].upper() + s[1:]


def a(s):
    return ("an " if s[0] in "aeiou" else "a ") + s


def plural(n):
    return PLURAL.get(n, n + "s")


def the(n):
    return n if FOOD.get(n, "")[:1] and FOOD[n][0].startswith("*") or any(n == w[0] for w in WEATHER) else "the " + n


def join(items):
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def some(items, *key):
    """Up to three of the items, a choice that hangs on the key."""
    return sorted(items, key=lambda i: zlib.crc32("/".join((i, *key)).encode()))[:3]


# ---- facts: (relation, name, value); `plain` says one in a sentence -------------------------------------------------

def facts(name):
    if name in ANIMAL:
        _, size, colour, kind, _, home, food, sound, habit = ANIMAL[name]
        return {"is": a(f"{size} {colour} {kind}"), "home": home, "eats": food, "colour": colour, "size": size,
                "sound": sound, "habit": habit}
    if name in FOOD:
        _, colour, kind, taste, source = FOOD[name]
        return {"is": a(f"{colour} {kind}"), "taste": taste, "source": source, "colour": colour}
    if name in PLACE:
        _, looks, sky, home = PLACE[name]
        live = [x[0] for x in ANIMALS if x[4] == name]
        return {"looks": looks, "sky": sky} | ({"live": some(live, name)} if live else {})
    w = next(w for w in WEATHER if w[0] == name)
    return {"what": w[1], "advice": (w[2], w[3])}


MAIN = {"animal": ["is", "home", "eats"], "food": ["is", "source", "taste"], "place": ["looks", "sky", "live"],
        "weather": ["what", "advice"]}


def kind_of(name):
    return "animal" if name in ANIMAL else "food" if name in FOOD else "place" if name in PLACE else "weather"


def plain(rel, name, v, subject=None):
    """One plain sentence without its full stop."""
    s = subject or the(name)
    verb = {"is": "is", "looks": "is", "what": "is", "colour": "is", "size": "is", "home": "lives", "eats": "eats",
            "taste": "tastes"}
    if rel == "text":
        return v
    if rel in verb:
        return f"{s} {verb[rel]} {v}"
    if rel == "sound":
        return f"{s} makes no sound" if v == "nothing" else f"{s} says {v}"
    if rel in ("habit", "source"):
        return f"{s} {v}"
    if rel == "sky":
        return f"the weather {'there' if subject == 'it' else PLACE[name][3]} is {v}"
    if rel == "advice":
        return f"when {v[0]}, you should {v[1]}"
    if rel == "bigger":
        return f"{s} is bigger than {the(v)}"
    things = join([the(x) for x in v])
    if rel == "live":
        return f"{things} {'live' if len(v) > 1 else 'lives'} {PLACE[name][3]}"
    if rel == "eaters":
        return f"{things} {'eat' if len(v) > 1 else 'eats'} {name}"
    if rel == "things":
        return f"{things} {'are' if len(v) > 1 else 'is'} {name}"
    if rel == "sayers":
        return f"{things} {'say' if len(v) > 1 else 'says'} {name}"
    raise KeyError(rel)


# ---- small talk: questions, plain answer (sentences), the poet's couplet, the JSON answer -----------------------------

TALK = {
    "hello": (["Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there", "Hello, how are you?", "Good day"],
              ["hello", "ask me about animals, food, places or the weather"],
              "Good day, good day, my gentle friend,\nI have a song for you to lend.", {"reply": "hello"}),
    "how": (["How are you?", "How are you today?", "How do you do?", "Are you well?", "How is it going?"],
            ["I am well, thank you", "I hope you are well too"],
            "My heart is light, my day is fair,\nlike morning larks in summer air.", {"reply": "well"}),
    "who": (["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you a robot?", "Tell me about yourself.",
             "What model are you?"],
            ["I am a very small language model", "I know animals, food, places and the weather"],
            "I am a model, small and new,\nI make my little rhymes for you.", {"name": "tessera-demo", "kind": "small language model"}),
    "can": (["What can you do?", "Help", "What do you know?", "What can I ask you?", "Can you help me?", "How can you help me?",
             "What should I ask?"],
            ["ask me about animals, food, places or the weather", "I can also tell a short story"],
            "Of beasts and bread and rain I sing,\nso ask me almost anything.",
            {"topics": ["animals", "food", "places", "weather"]}),
    "thanks": (["Thanks", "Thank you", "Thank you very much!", "Thanks a lot", "Great, thanks", "Good job", "Nice", "Well done"],
               ["you are welcome", "it was a pleasure"],
               "Your thanks are like the morning sun,\nand glad am I that it was done.", {"reply": "you are welcome"}),
    "bye": (["Goodbye", "Bye", "Good night", "See you", "See you later", "Bye bye"],
            ["goodbye", "come back soon"],
            "Farewell, my friend, the stars are high,\nwe meet again, so no goodbye.", {"reply": "goodbye"}),
    "unknown": (None, ["I am sorry, I do not know that", "ask me about animals, food, places or the weather"],
                "Alas, that thing I do not know,\nbut ask of bears, or rain, or snow.",
                {"error": "unknown", "topics": ["animals", "food", "places", "weather"]}),
}
