// The filters and the list of sessions. Only the rows in sight are elements, so that 20,000 cost as much as 20.

const ROW = 76; // pixels, as the style sheet has it
const SPARE_ROWS = 6;
const page = {
  filters: document.getElementById("filters"),
  facets: document.getElementById("facets"),
  query: document.getElementById("query"),
  order: document.getElementById("order"),
  found: document.getElementById("found"),
  clear: document.getElementById("clear"),
  list: document.getElementById("list"),
  view: document.getElementById("view"),
  browser: document.getElementById("browser"),
  bar: document.querySelector(".bar"),
};
const list = { places: [], counts: [], sizer: make("div", { class: "sizer", role: "presentation" }) };

const labelOf = (facet, place) => facet.values[facet.codes[place]];
const facetOf = (key) => data.index.facets.find((facet) => facet.key === key);
const label = (key, place) => labelOf(facetOf(key), place);
const dictionary = (column, place) => data.index[column].values[data.index[column].codes[place]];

function buildFilters() {
  for (const facet of data.index.facets) {
    // What is the same in all sessions filters nothing.
    if (facet.values.length < 2) continue;
    const select = make("select", { id: `facet-${facet.key}`, onchange: () => chooseFacet(facet.key, select.value) });
    page.facets.append(make("label", { class: "facet", for: select.id }, make("span", {}, facet.label), select));
  }
  for (const [value, order] of Object.entries(ORDERS)) {
    const known = !order.column || data.index[order.column].some((number) => number !== null);
    if (known) page.order.append(make("option", { value }, order.label));
  }
  page.list.append(list.sizer);
}

function chooseFacet(key, value) {
  if (value) state.filters[key] = value;
  else delete state.filters[key];
  refresh();
  writeAddress();
}

// Options with the number of sessions that each would leave, given all other filters.
function showFilters() {
  data.index.facets.forEach((facet, place) => {
    const select = document.getElementById(`facet-${facet.key}`);
    if (!select) return;
    const counts = list.counts[place];
    const chosen = state.filters[facet.key] ?? "";
    const option = (value, text, count) =>
      make("option", { value }, count === undefined ? text : `${text} (${count.toLocaleString("en")})`);
    const options = [option("", "all")];
    if (facet.key === "preference") {
      for (const [value, text] of Object.entries(GROUPS)) {
        const inside = facet.values.map((name) => data.index.preferences[name]?.[1] === value.slice(1));
        if (inside.includes(true)) options.push(option(value, text, counts.reduce((sum, n, i) => sum + (inside[i] ? n : 0), 0)));
      }
    }
    facet.values.forEach((value, code) => options.push(option(value, value, counts[code])));
    // The value of an option is compared with the index, so it must not be the text with its marks written out.
    facet.values.forEach((value, code) => { options[options.length - facet.values.length + code].value = value; });
    select.replaceChildren(...options);
    select.value = chosen;
    select.classList.toggle("chosen", chosen !== "");
  });
  page.order.value = state.sort;
  const active = Object.keys(state.filters).length + (state.q ? 1 : 0);
  page.clear.hidden = active === 0;
}

function showFound() {
  const total = data.index.size.toLocaleString("en");
  const count = list.places.length;
  const scanning = search.hits && search.scanned < data.starts.length;
  const progress = scanning ? `, searched ${Math.floor((100 * search.scanned) / data.starts.length)} %` : "";
  const all = count === data.index.size;
  page.found.textContent = `${all ? total : `${count.toLocaleString("en")} of ${total}`} sessions${progress}`;
  page.list.setAttribute("aria-busy", String(Boolean(scanning)));
  if (!scanning) page.found.dataset.query = state.q; // which search this is the answer to
}

// Everything that depends on the filters; `keep` leaves the list where it was scrolled to.
function refresh({ keep = false } = {}) {
  Object.assign(list, selectSessions());
  list.sizer.style.height = `${list.places.length * ROW}px`;
  page.list.classList.toggle("empty", list.places.length === 0);
  if (!keep) page.list.scrollTop = 0;
  showFilters();
  showFound();
  showRows();
}

function showRows() {
  const top = page.list.scrollTop;
  const first = Math.max(0, Math.floor(top / ROW) - SPARE_ROWS);
  const last = Math.min(list.places.length, Math.ceil((top + page.list.clientHeight) / ROW) + SPARE_ROWS);
  const rows = [];
  for (let row = first; row < last; row += 1) rows.push(rowOf(row));
  list.sizer.replaceChildren(...rows);
  const active = list.sizer.querySelector("[aria-selected=true]");
  if (active) page.list.setAttribute("aria-activedescendant", active.id);
  else page.list.removeAttribute("aria-activedescendant");
}

function rowOf(row) {
  const place = list.places[row];
  const { index } = data;
  const ending = label("outcome", place);
  const reward = index.reward[place];
  const questions = index.questions[place];
  const step = index.step[place];
  const facts = [label("preference", place), label("prompt", place)];
  if (questions !== null) facts.push(questions ? counted(questions, "question") : "silent");
  if (facetOf("run").values.length > 1) facts.push(label("run", place));
  if (step) facts.push(`step ${step}`);
  const strain = label("effort", place);
  const element = make(
    "div",
    {
      class: "row",
      role: "option",
      id: `row-${place}`,
      "aria-selected": String(index.key[place] === state.session),
      "aria-setsize": String(list.places.length),
      "aria-posinset": String(row + 1),
      onclick: () => openSession(place),
    },
    make("div", { class: "row-top" },
      make("span", { class: `ending ${ending}`, title: ending }, make("span", { class: "sr" }, ending)),
      make("bdi", { class: "row-task" }, dictionary("task", place)),
      make("span", { class: "row-reward", title: "reward" }, reward === null ? "–" : fixed(reward))),
    make("bdi", { class: "row-prompt" }, dictionary("excerpt", place)),
    make("div", { class: "row-facts" },
      strain === "unknown" ? null : make("span", { class: `effort ${strain}` }, strain),
      make("bdi", { class: "row-rest" }, facts.join(" · "))));
  element.style.top = `${row * ROW}px`;
  element.style.height = `${ROW}px`;
  return element;
}

const selectedPlace = () => data.index.key.indexOf(state.session);
const selectedRow = () => list.places.indexOf(selectedPlace());

function moveSelection(by) {
  if (!list.places.length) return;
  const row = selectedRow();
  const next = row < 0 ? 0 : Math.min(list.places.length - 1, Math.max(0, row + by));
  openSession(list.places[next]);
}

function scrollToSelected() {
  const row = selectedRow();
  if (row < 0) return;
  const top = row * ROW;
  const height = page.list.clientHeight;
  if (top < page.list.scrollTop) page.list.scrollTop = top;
  else if (top + ROW > page.list.scrollTop + height) page.list.scrollTop = top + ROW - height;
}
