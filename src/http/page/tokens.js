// A text whose tokens are shaded by how likely they were, and say what else could have been said.
// It is one stop of the keyboard: the arrow keys go through the tokens.

import { el, setText } from "./dom.js";

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share >= 10 ? Math.round(share) : share.toPrecision(2)} %`;
};

/** Blanks and line ends can be seen. */
const spelled = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "(nothing)";

let ids = 0;

function nextId() {
  ids += 1;
  return `token-${ids}`;
}

export class Tokens {
  constructor(name) {
    this.tokens = [];
    this.at = -1;
    this.list = el("div", {
      class: "tokens", role: "listbox", tabindex: "0",
      "aria-label": `Tokens of ${name}; arrow keys go through them`,
      keydown: (event) => this.key(event),
      focus: () => this.show(this.at < 0 ? 0 : this.at),
      click: (event) => this.show(this.tokens.findIndex(({ shown }) => shown === event.target)),
      mouseover: (event) => this.show(this.tokens.findIndex(({ shown }) => shown === event.target)),
    });
    this.about = el("p", { class: "about", "aria-live": "polite" });
    this.element = el("div", {}, this.list, this.about);
  }

  /** `top` is a list of [token, logprob], best first. A token that ends the text is none of it. */
  add(token, logprob, top, isEnd) {
    const shown = el("span", {
      class: isEnd && "end", role: "option", id: nextId(), "aria-selected": "false",
      "aria-label": `${spelled(token)}, ${percent(logprob)}`,
    }, token);
    shown.style.setProperty("--doubt", (1 - Math.exp(logprob)).toFixed(3));
    this.tokens.push({ token, logprob, top, shown });
    this.list.append(shown);
  }

  key(event) {
    const last = this.tokens.length - 1;
    const to = {
      ArrowRight: this.at + 1, ArrowLeft: this.at - 1, ArrowDown: this.at + 1,
      ArrowUp: this.at - 1, Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.show(Math.max(0, Math.min(last, to)));
  }

  show(at) {
    const one = this.tokens[at];
    if (!one) return;
    this.tokens[this.at]?.shown.setAttribute("aria-selected", "false");
    this.at = at;
    one.shown.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", one.shown.id);
    const others = one.top.filter(([token]) => token !== one.token)
      .map(([token, logprob]) => `${spelled(token)} ${percent(logprob)}`);
    const instead = others.length > 0 ? `; instead ${others.join(", ")}` : "";
    setText(this.about, `${spelled(one.token)} ${percent(one.logprob)}${instead}`);
  }
}
