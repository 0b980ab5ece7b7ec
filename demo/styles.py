"""The ways to say the same facts: plain, pirate, poet, telegram, formal, json.

Every style says the same facts, so that an adapter changes the manner and not the matter. Choices inside an answer
(which couplet, which oath) hang on a checksum of the facts instead of the random generator: the model can then learn
them, and greedy decoding does not fall back to the one commonest choice.
"""
import json
import re

from world import TALK, a, cap, pick, plain, the

STYLES = ["plain", "pirate", "poet", "telegram", "formal", "json"]


# ---- the poet's couplets; {the} {v} {s} = subject, value, whole plain sentence; a capital letter capitalises --------

COUPLETS = {
    "is": ["{The} is {v}, you see,\nas fine a thing as a thing can be.",
           "{V} is what {the} we call,\na friend in summer, a friend in fall.",
           "Oh, {the} is {v} indeed,\nand that is all the song we need."],
    "home": ["{V} {the} makes its bed,\nwith stars like candles overhead.",
             "{The} lives {v}, they say,\nand sings and wanders there all day.",
             "{V} {the} will always stay,\nfrom rosy dawn to end of day."],
    "eats": ["On {v} {the} will dine,\nas glad as a king with a cup of wine.",
             "{The} eats {v} with glee,\nand leaves no crumb for you or me.",
             "With {v} {the} is fed,\nbefore it softly goes to bed."],
    "colour": ["{The} is {v} in the morning light,\nand {v} it stays in the silver night.",
               "{V}, oh {v}, is {the} so fair,\nno other like it is found anywhere."],
    "size": ["{The} is {v}, as all can see,\nbeside the tall old apple tree.",
             "So {v} is {the}, so {v} and true,\nthat even the moon has a smile for you."],
    "sound": ["{The} says {v} when the day is new,\nand all of the morning is wet with dew.",
              "{V}, says {the}, to the moon on high,\nand only the echo will give a reply."],
    "silent": ["{The} is silent by night and by day,\nit has not a word or a song to say."],
    "habit": ["{S}, they tell,\nand all who have seen it remember it well.",
              "I heard that {s}, my friend,\nand that is the tale from beginning to end."],
    "taste": ["{S}, my tongue will tell,\nand oh, it has a lovely smell.",
              "{S}, I say,\nI could eat a bite of it every day."],
    "source": ["{S}, it is true,\na gift for me and a gift for you.",
               "I know that {s}, my dear,\nand there we find it year by year."],
    "looks": ["Oh, {s}, I know,\nand that is where I love to go.",
              "{S}, they say,\nand I could dream there all the day."],
    "sky": ["And {v} is the weather there,\nwith something lovely in the air."],
    "what": ["{S}, my dear,\nit comes and goes throughout the year."],
    "advice": ["{S}, my friend,\nand all will be well by the journey's end."],
    "bigger": ["{S} by far,\nas grand as the moon and as bright as a star."],
    "live": ["{S}, I know,\nin summer sun and winter snow."],
    "eaters": ["{S} with delight,\nat noon, in the evening, and late in the night."],
    "things": ["{S}, so bright,\nlike little lamps in the evening light."],
    "sayers": ["{S} at the break of day,\nand that is the way that they like to play."],
}

# How the poet ends a plain sentence that somebody else began.
ENDINGS = {"home": [" so dear,\nand sings to itself in the spring of the year."],
           "eats": [" all day,\nand when it is full it will dance and play."],
           "colour": [" and fair,\nlike a little flag in the morning air."]}
ENDING = [", I know,\nin summer sun and winter snow.", ", they say,\nand so it will be till the end of the day."]


# ---- styles -----------------------------------------------------------------------------------------------------------

def sentences(yes, fs):
    """The plain answer as sentences without capital and full stop."""
    out = []
    for i, (rel, name, v) in enumerate(fs):
        if rel == "talk":
            return list(TALK[name][1])
        if rel == "story":
            there, friend, meal = v
            return [f"once upon a time {a(name)} left home and went to the {there}", f"there it met {a(friend)}",
                    f"they shared some {meal} and became good friends"]
        out.append(plain(rel, name, v, None if i == 0 else "it"))
    if yes:
        out[0] = f"{yes}, {out[0]}"
    return out


def couplets(yes, fs):
    out = []
    for i, (rel, name, v) in enumerate(fs):
        if rel == "talk":
            return TALK[name][2]
        if rel == "story":
            there, friend, meal = v
            return (f"{cap(a(name))} once went to the {there} at noon,\nand met {a(friend)} by the light of the moon.\n"
                    f"They shared some {meal} and they sang a song,\nand friends they stayed for their whole life long.")
        s = plain(rel, name, v, None if i == 0 else "it")
        form = pick(COUPLETS["silent" if v == "nothing" else rel], name, rel)
        thing, value = (the(name) if i == 0 else "it"), v if isinstance(v, str) else ""
        if yes and i == 0:
            form = f"Oh {yes}, " + form[0] + form[1].lower() + form[2:] if form[0] == "{" else f"Oh {yes}, " + form[0].lower() + form[1:]
        out.append(form.format(the=thing, The=cap(thing), v=value, V=cap(value), s=s, S=cap(s)))
    return "\n".join(out)


SLANG = [(r"\bis\b", "be"), (r"\bare\b", "be"), (r"\bam\b", "be"), (r"\blives\b", "makes its berth"), (r"\blive\b", "make their berth"),
         (r"\beats\b", "feasts on"), (r"\beat\b", "feast on"), (r"\band\b", "an'"), (r"\byou\b", "ye"), (r"\byour\b", "yer"), (r"\bmy\b", "me"),
         (r"\bsays\b", "bellows"), (r"\bsay\b", "bellow"), (r"\bhello\b", "ahoy"), (r"\banimal\b", "beast"), (r"\bfriends\b", "shipmates"),
         (r"\bdo not know\b", "know not"), (r"\byes\b", "aye"), (r"^no\b", "nay"), (r"\btastes\b", "tastes, I swear,"), (r"\bgood\b", "fine"),
         (r"\bgoodbye\b", "fair winds")]
OATHS = ["Arr! ", "Ahoy! ", "Yo ho ho! ", "Avast! ", "Shiver me timbers! "]
ENDS = [", matey!", ", me hearty!", ", ye landlubber!", ", by the black flag!", ", savvy?"]


def slang(s):
    for x, y in SLANG:
        s = re.sub(x, y, s)
    return s


def terse(s):
    """Telegrams pay by the word: no articles, no small verbs, no commas."""
    s = re.sub(r"^IT( IS)? |\b(A|AN|THE|(?<!IT )IS|ARE)\b ?", "", s.replace(",", "").upper())
    return s.strip() + " STOP"


def lower(s):
    return s if re.match(r"I\b", s) else s[:1].lower() + s[1:]


KEYS = {"is": "kind", "home": "home", "eats": "food", "colour": "colour", "size": "size", "sound": "sound", "habit": "fact", "taste": "taste",
        "source": "source", "looks": "looks", "sky": "weather", "live": "animals", "what": "meaning", "eaters": "animals", "things": "things",
        "sayers": "animals"}


def as_json(yes, fs):
    out = {"answer": yes == "yes"} if yes else {}
    for rel, name, v in fs:
        if rel == "talk":
            out |= TALK[name][3]
        elif rel == "story":
            out |= {"story": {"hero": name, "place": v[0], "friend": v[1], "meal": v[2]}}
        elif rel == "bigger":
            out |= {"bigger": name, "smaller": v}
        elif rel == "advice":
            out |= {"advice": v[1]}
        else:
            out.setdefault("name", name)
            out[KEYS[rel]] = re.sub(r"^an? ", "", v) if rel == "is" else v.split(" and ") if rel == "eats" else v
    return json.dumps(out)


def say(style, yes, fs):
    ss, key = sentences(yes, fs), f"{fs[0][0]}/{fs[0][1]}"
    if style == "plain":
        return " ".join(cap(s) + "." for s in ss)
    if style == "pirate":
        ss = [cap(slang(s)) for s in ss]
        return pick(OATHS, key, 1) + ". ".join(ss) + pick(ENDS, key, 2)
    if style == "poet":
        return couplets(yes, fs)
    if style == "telegram":
        return " ".join(terse(s) for s in ss)
    if style == "formal":
        also = ["Furthermore, ", "Moreover, ", "In addition, "]
        if fs[0][0] == "talk":
            return "Dear Sir or Madam, " + ". ".join([lower(ss[0])] + [cap(s) for s in ss[1:]]) + ". Yours faithfully."
        first = "Dear Sir or Madam, I am pleased to inform you that "
        if yes:
            first = "Dear Sir or Madam, my answer is "
        return first + ". ".join([lower(ss[0])] + [also[i % 3] + lower(s) for i, s in enumerate(ss[1:])]) + ". Yours faithfully."
    return as_json(yes, fs)
