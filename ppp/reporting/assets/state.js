// What is being looked at: filters, order, search and session. All of it stands in the address, behind the #.

const ORDERS = {
  "": { label: "as recorded" },
  "reward-down": { label: "reward, highest first", column: "reward", sign: -1 },
  "reward-up": { label: "reward, lowest first", column: "reward", sign: 1 },
  "step-down": { label: "step, latest first", column: "step", sign: -1 },
  "step-up": { label: "step, earliest first", column: "step", sign: 1 },
  "questions-down": { label: "most questions first", column: "questions", sign: -1 },
  "turns-down": { label: "most turns first", column: "turns", sign: -1 },
  "tokens-down": { label: "most tokens first", column: "tokens", sign: -1 },
};
const GROUPS = { "~seen": "all seen", "~unseen": "all unseen" }; // of preferences, instead of a single one

const state = { filters: {}, q: "", sort: "", session: "", view: "" };

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  state.filters = {};
  for (const facet of data.index.facets) {
    const value = address.get(facet.key);
    if (value !== null && (facet.values.includes(value) || value in GROUPS)) state.filters[facet.key] = value;
  }
  state.q = address.get("q") ?? "";
  state.sort = (address.get("sort") ?? "") in ORDERS ? address.get("sort") ?? "" : "";
  state.session = address.get("session") ?? "";
  state.view = address.get("view") === "tokens" ? "tokens" : "";
}

function addressOf(changes = {}) {
  const wanted = { ...state, ...changes };
  const address = new URLSearchParams(wanted.filters);
  for (const name of ["q", "sort", "session", "view"]) if (wanted[name]) address.set(name, wanted[name]);
  const theme = document.documentElement.dataset.theme;
  if (theme) address.set("theme", theme);
  return `#${address}`;
}

// Replaces the address, except where going back should lead out of something again.
function writeAddress({ push = false } = {}) {
  const address = addressOf();
  if (address === location.hash || (address === "#" && !location.hash)) return;
  if (push) history.pushState(null, "", address);
  else history.replaceState(history.state, "", address);
}

// For each facet, which of its codes the filter lets through; null lets all through.
function wantedCodes(facet) {
  const value = state.filters[facet.key];
  if (value === undefined) return null;
  if (value in GROUPS) {
    const split = value.slice(1);
    return facet.values.map((name) => data.index.preferences[name]?.[1] === split);
  }
  return facet.values.map((name) => name === value);
}

// Places of the sessions that pass, in order, and for each facet how many each of its values would give.
function selectSessions() {
  const { facets, size } = data.index;
  const wanted = facets.map(wantedCodes);
  const codes = facets.map((facet) => facet.codes);
  const counts = facets.map((facet) => new Uint32Array(facet.values.length));
  const places = [];
  for (let place = 0; place < size; place += 1) {
    if (search.hits && !search.hits[place]) continue;
    let failed = -1;
    let failures = 0;
    for (let facet = 0; facet < facets.length && failures < 2; facet += 1) {
      if (wanted[facet] && !wanted[facet][codes[facet][place]]) {
        failures += 1;
        failed = facet;
      }
    }
    if (failures === 0) {
      places.push(place);
      for (let facet = 0; facet < facets.length; facet += 1) counts[facet][codes[facet][place]] += 1;
    } else if (failures === 1) {
      counts[failed][codes[failed][place]] += 1;
    }
  }
  return { places: inOrder(places), counts };
}

// Sessions without a value come last, whatever the direction.
function inOrder(places) {
  const { column, sign } = ORDERS[state.sort];
  if (!column) return places;
  const values = data.index[column];
  return places.sort((a, b) => {
    const [first, second] = [values[a], values[b]];
    if (first === null || second === null) return (first === null) - (second === null) || a - b;
    return sign * (first - second) || a - b;
  });
}
