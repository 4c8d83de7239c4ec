// The token view: which tokens are the agent's own, and how sure it was of each; the others carry no loss.

const TOKENS_PER_STEP = 3000;
// Lower bounds of the classes of probability, and how they are called; the colours stand in the style sheet.
const CLASSES = [
  [0.9, "over 90 %"],
  [0.5, "50–90 %"],
  [0.1, "10–50 %"],
  [0.01, "1–10 %"],
  [0, "under 1 %"],
];

function classOf(logprob) {
  const probability = Math.exp(logprob);
  return CLASSES.findIndex(([bound]) => probability >= bound);
}

function tokenTitle(tokens, place) {
  if (!tokens.own[place]) return `token ${place + 1} of ${tokens.pieces.length} · masked: not the agent's, no loss`;
  const logprob = tokens.logprobs[place];
  const chance = logprob === null ? "no log-probability" : `log-probability ${fixed(logprob, 3)} · probability ${(100 * Math.exp(logprob)).toPrecision(3)} %`;
  return `token ${place + 1} of ${tokens.pieces.length} · the agent's · ${chance}`;
}

// A token's text with what one cannot see in it made visible; its line breaks also break the line.
function tokenText(piece) {
  const text = piece.replace(/\t/g, "⇥\t").replace(/\n/g, "↵\n");
  return text === "" ? "∅" : text;
}

function tokenElement(tokens, place) {
  const own = tokens.own[place];
  const logprob = tokens.logprobs[place];
  const kind = own ? `own ${logprob === null ? "" : `p${classOf(logprob)}`}` : "masked";
  return make("span", { class: `token ${kind}`, "data-place": String(place), tabindex: place === 0 ? "0" : "-1" }, tokenText(tokens.pieces[place]));
}

function tokenLegend(tokens) {
  const counts = CLASSES.map(() => 0);
  let own = 0;
  let sum = 0;
  let known = 0;
  tokens.own.forEach((mine, place) => {
    if (!mine) return;
    own += 1;
    const logprob = tokens.logprobs[place];
    if (logprob === null) return;
    known += 1;
    sum += logprob;
    counts[classOf(logprob)] += 1;
  });
  const keys = CLASSES.map(([, text], number) =>
    make("li", {}, make("span", { class: `key own p${number}` }), `${text} `, make("small", {}, counts[number].toLocaleString("en"))));
  const masked = tokens.pieces.length - own;
  keys.push(make("li", {}, make("span", { class: "key masked" }), "masked ", make("small", {}, masked.toLocaleString("en"))));
  const mean = known ? `; mean log-probability ${fixed(sum / known, 3)}` : "";
  return make("div", { class: "token-legend" },
    make("p", {}, `${counted(own, "token")} of the agent, ${counted(masked, "masked token")}${mean}. Colour: how probable the sampled token was.`),
    make("ul", { class: "legend" }, keys));
}

function tokenView(tokens) {
  const readout = make("output", { class: "readout" }, "Point at a token, or move through them with the arrow keys.");
  const box = make("div", { class: "tokens", role: "group", "aria-label": "Tokens", dir: "ltr" });
  let end = 0;
  const more = make("button", { type: "button", class: "more", onclick: () => append() });
  const append = () => {
    const next = Math.min(tokens.pieces.length, end + TOKENS_PER_STEP);
    const part = document.createDocumentFragment();
    for (; end < next; end += 1) part.append(tokenElement(tokens, end));
    box.append(part);
    more.hidden = end >= tokens.pieces.length;
    more.textContent = `Show more: ${counted(tokens.pieces.length - end, "token")} left`;
  };
  append();
  const tell = (event) => {
    const token = event.target.closest(".token");
    if (!token) return;
    readout.textContent = tokenTitle(tokens, Number(token.dataset.place));
    token.setAttribute("aria-label", `${token.textContent} ${readout.textContent}`);
  };
  box.addEventListener("pointerover", tell);
  box.addEventListener("focusin", tell);
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = by && event.target[by];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return [make("div", { class: "token-head" }, tokenLegend(tokens), readout), box, more];
}
