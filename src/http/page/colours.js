// A colour for each name, the same for as long as the page is open and most often when it is opened
// again. Names stand beside their colours everywhere: nobody needs to tell these apart.

// Hues that are far from each other.
const HUES = [25, 250, 145, 320, 75, 195, 285, 110, 355, 220, 50, 170];

const hues = new Map();
let base = null;

/** The base model has none. */
export function setBase(name) {
  base = name;
}

function hash(text) {
  let h = 2166136261;
  for (const unit of text) h = Math.imul(h ^ unit.codePointAt(0), 16777619);
  return h >>> 0;
}

function hue(name) {
  if (!hues.has(name)) {
    const first = hash(name) % HUES.length;
    const taken = new Set(hues.values());
    const free = HUES.map((_, i) => HUES[(first + i) % HUES.length]).find((h) => !taken.has(h));
    hues.set(name, free ?? hash(name) % 360);
  }
  return hues.get(name);
}

/** Gives an element the colour of a name. */
export function tint(element, name) {
  element.classList.add("tinted");
  element.style.setProperty("--hue", name === base ? 0 : hue(name));
  element.style.setProperty("--chroma", name === base ? 0 : 1);
  return element;
}
