"""Draws training text: questions about the world with answers in a style, chats, and plain statements."""
import re
import zlib

from styles import ENDING, ENDINGS, ENDS, as_json, say, slang, terse
from world import ANIMAL, ANIMALS, COLOURS, FOOD, FOODS, MAIN, PLACE, PLACES, SIZES, TALK, WEATHER, a, cap, facts, kind_of, pick, plain, plural, some, the

# Words outside the world: with them the model learns to say that it does not know.
COUNTRIES = "France Spain Japan Brazil Canada Italy Egypt India China Peru Norway Kenya Chile Cuba Greece Germany Poland Mexico".split()
OUTSIDE = ("kangaroo panda dragon hippo unicorn dinosaur car train computer phone piano guitar football chess moon planet star rocket "
           "robot book film doctor teacher king queen school bridge ship clock money gold silver atom number language "
           "poem song game shoe shirt chair table window door sword castle ghost engine server database adapter kernel "
           "llama walrus ostrich pelican mango avocado pasta pizza burger coffee wine beer sushi").split()
UNKNOWN = ["What is the capital of {c}?", "Who is the president of {c}?", "Where is {c}?", "How many people live in {c}?",
           "What is {n} + {m}?", "What is {n} times {m}?", "How much is {n} plus {m}?", "Write a poem about the {o}.", "Write code for a {o}.", "What is your favourite {o}?", "Why is the sky {p}?", "Why do {o}s {p}?",
           "Write a Python function that sorts a list of {o}s.", "What is a {o}?", "Tell me about the {o}.", "How does a {o} work?",
           "Where can I buy a {o}?", "Explain the {o} to me.", "Do you like {o}s?", "Who invented the {o}?", "How do I fix my {o}?",
           "Where does a {o} live?", "What does a {o} eat?", "What is the meaning of life?", "What time is it?", "What day is it today?",
           "Who won the match?", "Translate this into French: {o}", "Summarise this text: {o} {p} {o}", "Can you write an email to my {o}?",
           "{p} {o} {n}", "{o}", "¿Dónde está {c}?", "{o} 日本", "☕ {o}", "Why is the {o} so {p}?", "How old is the {o}?", "Explain how {o}s {p}.", "Count to {n}.", "What is love?",
           "Is there a {o} in {c}?", "Which {o} is the best?", "How do I cook {o}?", "Give me {n} ideas for a {o}.", "test", "Repeat after me: {p} {o}"]

SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.", "Be kind and helpful.", "You are a friendly guide.",
           "Answer the question of the user.", "You are an expert.", "Be concise."]

# Questions: {a} {the} {ps} name the subject, {it} only appears in follow-ups.
ASK = {
    "animal": ["What is {a}?", "Tell me about {the}.", "What do you know about {ps}?", "Describe {the}.", "Tell me about {ps}.", "Tell me something about {the}.",
               "What kind of animal is {the}?", "What are {ps}?", "I want to learn about {ps}.", "{A}", "What can you tell me about {the}?"],
    "food": ["What is {a}?", "Tell me about {the}.", "What do you know about {ps}?", "Describe {the}.", "{A}", "What are {ps}?",
             "Tell me about {ps}.", "Tell me something about {ps}.", "What kind of food is {the}?", "What can you tell me about {ps}?"],
    "place": ["What is {the} like?", "Tell me about {the}.", "Describe {the}.", "What do you know about {the}?", "How does {the} look?",
              "What is {the}?", "{The}"],
    "weather": ["What is {the}?", "Tell me about {the}.", "What do you know about {the}?", "Describe {the}.", "{The}", "Explain {the}."],
    "home": ["Where does {the} live?", "Where do {ps} live?", "Where can I find {a}?", "What is the home of {the}?", "Where is {the} at home?",
             "Where does {a} live?", "Where would I see {a}?"],
    "eats": ["What does {the} eat?", "What do {ps} eat?", "What is the food of {the}?", "What do {ps} like to eat?", "What does {a} eat?",
             "What should I feed {a}?", "What does {the} have for dinner?", "Favourite food of {ps}?"],
    "colour": ["What colour is {the}?", "What colour are {ps}?", "Which colour does {the} have?", "What color is {a}?", "What color are {ps}?",
               "What is the colour of {the}?"],
    "size": ["How big is {the}?", "What size is {the}?", "How large are {ps}?", "How big are {ps}?", "Is {the} big or small?", "How tall is {a}?"],
    "sound": ["What does {the} say?", "What sound does {a} make?", "Which sound do {ps} make?", "How does {the} sound?", "What do {ps} say?",
              "What noise does {the} make?"],
    "habit": ["What does {the} do?", "What is special about {ps}?", "Tell me a fun fact about {ps}.", "What do {ps} do all day?", "What can {the} do?",
              "Tell me something special about {the}.", "Give me a fact about {ps}."],
    "taste": ["How does {the} taste?", "What does {the} taste like?", "What is the taste of {the}?", "Is {the} sweet?", "What do {ps} taste like?",
              "Does {the} taste good?"],
    "source": ["Where does {the} come from?", "How is {the} made?", "Where do we get {ps}?", "Where does {a} grow?", "Where do we find {ps}?"],
    "sky": ["What is the weather like {home}?", "How is the weather {home}?", "Is it cold {home}?", "Is it hot {home}?", "Does it rain {home}?"],
    "live": ["Who lives {home}?", "Which animals live {home}?", "What animals are {home}?", "Name some animals {home}.", "Name an animal that lives {home}."],
    "advice": ["What should I do when {when}?", "What should I wear when {when}?", "What do I need when {when}?", "Help, {when}!",
               "What can I do if {when}?"],
    "eaters": ["Who eats {v}?", "Which animals eat {v}?", "What animal eats {v}?", "Name an animal that eats {v}.", "Who likes {v}?"],
    "things": ["What is {v}?", "What things are {v}?", "Name something {v}.", "Which animals are {v}?", "What has the colour {v}?", "Name some {v} things."],
    "sayers": ["Who says {v}?", "Which animal says {v}?", "What animal goes {v}?", "Which animals say {v}?"],
    "story": ["Tell me a story about {a}.", "Tell a story about {the}.", "Write a story about {a}.", "A story about {a}, please."],
    "anystory": ["Tell me a story.", "Tell me a short story.", "Write a story.", "Do you know a story?", "A story, please."],
}
FOLLOW = {"home": ["Where does it live?", "And where does it live?"], "eats": ["What does it eat?", "And what does it eat?"],
          "colour": ["What colour is it?", "And its colour?"], "size": ["How big is it?"], "sound": ["What does it say?", "What sound does it make?"],
          "habit": ["What does it do?", "Tell me more.", "What is special about it?"], "taste": ["How does it taste?"],
          "source": ["Where does it come from?"], "sky": ["What is the weather like there?"], "live": ["Who lives there?"]}


def held_out(question):
    """One question in twelve is never shown in training, so that a check can ask something new."""
    return zlib.crc32(re.sub(r"[^a-z ]", "", question.lower()).encode()) % 12 == 0


def word(form, name):
    """Fills a question form with every way to name a thing."""
    bare, mass = the(name) == name, the(name)
    home = PLACE[name][3] if name in PLACE else ""
    return (form.replace("{home}", home).replace("{A}", cap(name)).replace("{The}", cap(mass))
            .replace("{a}", name if bare else a(name)).replace("{the}", mass).replace("{ps}", name if bare else plural(name)))


def loosen(rng, q):
    """What people really type: no capital, no question mark, a word of courtesy in front."""
    r = rng.random()
    if r < 0.12:
        q = q.lower()
    elif r < 0.24 and len(q) > 12:
        q = rng.choice(["Please tell me: ", "Can you tell me: ", "Hey, ", "Hi! ", "I have a question. ", "Please: ", "Hello! "]) + q
    if rng.random() < 0.2:
        q = q.rstrip("?.!")
    return q


def story(name):
    """Hangs on the hero alone: where it goes, whom it meets and what they share."""
    there = pick([p[0] for p in PLACES if name not in ANIMAL or p[0] != ANIMAL[name][4]], name, "to")
    friend = pick([x[0] for x in ANIMALS if x[4] == there] or ["owl"], name, "friend")
    friend = friend if friend != name else "bee"
    return there, friend, pick(["bread", "honey", "cheese", "soup", "chocolate", "rice"], name, "meal")


def names(rng):
    return rng.choice(rng.choices([ANIMALS, FOODS, PLACES, WEATHER], [6, 3, 2, 1])[0])[0].strip("*")


def ask(rng, name=None):
    """A question with its answer: (question, yes/no/None, [fact], name or None)."""
    r, name = rng.random(), name or names(rng)
    f, kind = facts(name), kind_of(name)
    if r < 0.34:
        return word(rng.choice(ASK[kind]), name), None, [(k, name, f[k]) for k in MAIN[kind] if k in f], name
    if r < 0.62:
        rel = rng.choice([k for k in f if k in ASK])
        form = rng.choice(ASK[rel])
        if rel == "advice":
            form = form.replace("{when}", f[rel][0])
        return word(form, name), None, [(rel, name, f[rel])], name
    if r < 0.68 and kind == "animal":
        return yes_no(rng, name)
    if r < 0.73:
        one, two = rng.sample([x for x in ANIMALS], 2)
        if one[1] != two[1]:
            big, low = sorted((one, two), key=lambda x: -SIZES.index(x[1]))
            form = rng.choice(["Which is bigger, the {0} or the {1}?", "Is the {0} bigger than the {1}?", "Who is bigger, the {0} or the {1}?"])
            yes = None if form[0] == "W" else "yes" if one is big else "no"
            return form.format(one[0], two[0]), yes, [("bigger", big[0], low[0])], None
    if r < 0.80:
        return reverse(rng)
    if r < 0.85:
        hero = name if kind == "animal" else "fox"
        form = rng.choice(ASK["story" if kind == "animal" else "anystory"])
        return word(form, hero), None, [("story", hero, story(hero))], hero
    topic = rng.choice([*TALK, "unknown", "unknown", "unknown", "stranger", "stranger", "stranger"])
    if topic == "stranger":  # a question of the right form about a thing outside the world
        rel = rng.choice(["animal", "food", "place", "home", "eats", "colour", "size", "sound", "habit", "taste", "source", "story"])
        return word(rng.choice(ASK[rel]), nonsense(rng)), None, [("talk", "unknown", None)], None
    if topic != "unknown":
        return rng.choice(TALK[topic][0]), None, [("talk", topic, None)], None
    fill = dict(c=rng.choice(COUNTRIES), o=nonsense(rng), p=rng.choice(OUTSIDE + ["red", "run", "big", "and", "the"]), n=rng.randrange(100),
                m=rng.randrange(100))
    return rng.choice(UNKNOWN).format(**fill), None, [("talk", "unknown", None)], None


def nonsense(rng):
    """A word outside the world, half the time one that does not exist at all."""
    if rng.random() < 0.5:
        return rng.choice(OUTSIDE)
    return "".join(rng.choice("b c d f g k l m n p r s t v w z tr pl gr st".split()) + rng.choice("a e i o u oo".split()) for _ in range(rng.randint(1, 3))) \
        + rng.choice(["", "n", "r", "p", "x"])


def yes_no(rng, name):
    rel = rng.choice(["home", "eats", "colour"])
    v = facts(name)[rel]
    other = facts(rng.choice(ANIMALS)[0])[rel] if rng.random() < 0.5 else v
    if rel == "eats":
        said = rng.choice(other.split(" and "))
        yes, q = said in v.split(" and "), rng.choice([f"Does the {name} eat {said}?", f"Do {plural(name)} eat {said}?"])
    elif rel == "home":
        yes, q = other == v, rng.choice([f"Does the {name} live {other}?", f"Do {plural(name)} live {other}?"])
    else:
        yes, q = other == v, rng.choice([f"Is the {name} {other}?", f"Are {plural(name)} {other}?"])
    return q, "yes" if yes else "no", [(rel, name, v)], name


def reverse(rng):
    """From the value to the things: who eats grass, what is red, who says moo."""
    rel = rng.choice(["eaters", "things", "sayers"])
    if rel == "eaters":
        v = rng.choice(rng.choice(ANIMALS)[6].split(" and "))
        who = [x[0] for x in ANIMALS if v in x[6].split(" and ")]
    elif rel == "things":
        v = rng.choice(COLOURS)
        who = [x[0] for x in ANIMALS if x[2] == v] + [n for n, x in FOOD.items() if x[1] == v]
    else:
        v = rng.choice([x[7] for x in ANIMALS if x[7] != "nothing"])
        who = [x[0] for x in ANIMALS if x[7] == v]
    return rng.choice(ASK[rel]).replace("{v}", v), None, [(rel, v, some(who, v))], None


def statement(rng, style):
    """(prompt, continuation): the start of a plain sentence and how each style goes on. With an empty prompt, just text."""
    name = names(rng)
    f, kind = facts(name), kind_of(name)
    rel = rng.choice([k for k in f if k != "advice"])
    subject = the(name) if rng.random() < 0.75 or the(name) == name else a(name)
    if kind == "place":
        subject = the(name)
    s = cap(plain(rel, name, f[rel], subject))
    words = s.split(" ")
    first = len(subject.split(" ")) if rel not in ("sky", "live") else 2
    cut = rng.randint(first, len(words) - 1)
    head, rest = " ".join(words[:cut]), " ".join(words[cut:])
    said = {"colour": "is", "size": "is"}.get(rel, rel)
    more = [k for k in MAIN[kind] if k in f and k != said and k != "advice"] + (["habit"] if "habit" in f and rel != "habit" else [])
    again = the(name) if rel in ("sky", "live") else "it"
    then = plain(more[0], name, f[more[0]], again) if more else ""
    if style == "plain":
        tail = [cap(plain(k, name, f[k], again if i == 0 else "it")) + "." for i, k in enumerate(more)]
        return head, " " + " ".join([rest + "."] + tail)
    if style == "pirate":
        return head, " " + slang(rest) + pick(ENDS, name, rel) + (" Arr, " + slang(then) + "!" if then else "")
    if style == "poet":
        return head, " " + rest + pick(ENDINGS.get(rel, ENDING), name, rel)
    if style == "telegram":
        return head, " " + terse(rest) + (" " + terse(then) if then else "")
    if style == "formal":
        return head, " " + rest + ", I am pleased to inform you." + (" Furthermore, " + then + "." if then else "") + " Yours faithfully."
    return head, " " + as_json(None, [(rel, name, f[rel])])


def chat(rng, style, turns=1, held=False):
    """[(question, answer)]: the later turns may speak of the first one's subject as `it`."""
    out, last = [], None
    while len(out) < turns:
        f = facts(last) if last else {}
        rels = [k for k in f if k in FOLLOW]
        if rels and rng.random() < 0.6:
            rel = rng.choice(rels)
            q, yes, fs = rng.choice(FOLLOW[rel]), None, [(rel, last, f[rel])]
        else:
            q, yes, fs, last = ask(rng)
            if held_out(q) != held:
                last = None
                continue
            q = loosen(rng, q)
        out.append((q, say(style, yes, fs)))
    return out
