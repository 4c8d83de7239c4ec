// Text of models and users, put on the page as text and nothing else: `make` is the only way in which elements come about.

// Characters that show nothing, or that change how others are shown. Newlines and tabs are not among them.
const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufff0-\uffff\u{e0000}-\u{e0fff}]/gu;

const LINES_SHOWN = 14;
const CHARS_SHOWN = 1800;
const CHARS_PER_STEP = 40000; // what the browser lays out in one go without a pause that one would notice

const codePoint = (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;

// For attributes and options, which hold no elements.
const shown = (text) => String(text).replace(/\r\n/g, "\n").replace(UNSEEN, codePoint);

// For elements: the same, each mark an element of its own.
function plain(text) {
  const fragment = document.createDocumentFragment();
  const source = String(text).replace(/\r\n/g, "\n");
  let end = 0;
  for (const found of source.matchAll(UNSEEN)) {
    if (found.index > end) fragment.append(source.slice(end, found.index));
    const mark = document.createElement("span");
    mark.className = "mark";
    mark.textContent = codePoint(found[0]);
    fragment.append(mark);
    end = found.index + found[0].length;
  }
  if (end < source.length) fragment.append(source.slice(end));
  return fragment;
}

// An element. `options` holds a class, listeners ("onclick") and attributes; children are elements or text.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name === "class" ? "class" : name, value === true ? "" : shown(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function lineCount(text) {
  let lines = 1;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) lines += 1;
  return lines;
}

// Where the first `lines` lines or `chars` characters end; no pair of surrogates is cut in two.
function cutAt(text, start, lines, chars) {
  let end = start;
  for (let line = 0; line < lines; line += 1) {
    const next = text.indexOf("\n", end);
    if (next < 0) { end = text.length; break; }
    end = next + 1;
  }
  end = Math.min(end, start + chars);
  const code = text.charCodeAt(end - 1);
  return end < text.length && code >= 0xd800 && code < 0xdc00 ? end + 1 : end;
}

// A text of any length: short ones as they are, long ones with their beginning and a button for more.
function longText(text, { code = false, lines = LINES_SHOWN, chars = CHARS_SHOWN } = {}) {
  const box = make("div", { class: code ? "text code" : "text", dir: code ? "ltr" : "auto" });
  let end = cutAt(text, 0, lines, chars);
  // Hiding a line or two would cost more attention than it saves.
  if (text.length - end < 200 && lineCount(text.slice(end)) <= 3) end = text.length;
  box.append(make("div", { class: "piece" }, text.slice(0, end)));
  if (end >= text.length) return box;

  const size = `${counted(lineCount(text), "line")}, ${counted(text.length, "character")}`;
  const start = end;
  const more = make("button", { type: "button", class: "more" }, `Show all: ${size}`);
  const less = make("button", { type: "button", class: "more", hidden: true }, "Show less");
  box.classList.add("cut");
  more.addEventListener("click", () => {
    const next = cutAt(text, end, Infinity, CHARS_PER_STEP);
    box.insertBefore(make("div", { class: "piece" }, text.slice(end, next)), more);
    end = next;
    box.classList.remove("cut");
    less.hidden = false;
    more.hidden = end >= text.length;
    more.textContent = `Show more: ${counted(text.length - end, "character")} left`;
  });
  less.addEventListener("click", () => {
    box.querySelectorAll(".piece ~ .piece").forEach((piece) => piece.remove());
    end = start;
    box.classList.add("cut");
    less.hidden = true;
    more.hidden = false;
    more.textContent = `Show all: ${size}`;
    more.focus();
  });
  box.append(more, less);
  return box;
}

const signed = (value, digits = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const fixed = (value, digits = 2) => `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;

function seconds(value) {
  if (value >= 90) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return value >= 10 ? `${value.toFixed(0)} s` : value >= 0.1 ? `${value.toFixed(1)} s` : `${(value * 1000).toFixed(0)} ms`;
}
