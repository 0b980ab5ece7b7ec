// Making elements. Whatever comes from a server is text and nothing else: there is no way from here
// to HTML.

/** An element with attributes, and children that are elements or become text. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Writes only what has changed, so that nothing is drawn or read out again in vain. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

/** Bytes as people say them. */
export function bytes(n) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

/** Three digits of a number are enough to compare. */
export function rounded(n) {
  if (n >= 100) return Math.round(n).toLocaleString("en");
  return n >= 10 ? n.toFixed(1) : n.toFixed(2);
}

/** How long something took. */
export const duration = (ms) => (ms < 1000 ? `${rounded(ms)} ms` : `${rounded(ms / 1000)} s`);

/** Shows those of `items`, each with its name, that hold what is typed into `filter`. */
export function narrow(filter, items) {
  const wanted = filter.value.trim().toLowerCase();
  for (const [name, item] of items) item.hidden = !name.toLowerCase().includes(wanted);
}
