// Puts the page together: reads the data, follows the address, the keyboard and, while a run goes on, its server.

const SEARCH_DELAY_MS = 90;
const POLL_MS = 2000;
const narrow = matchMedia("(max-width: 860px)");
let opened = 0; // counts openings, so that a slow one does not overwrite a later one

async function openSession(place) {
  const push = !state.session && narrow.matches;
  state.session = data.index.key[place];
  writeAddress({ push });
  scrollToSelected();
  showRows();
  bringIntoSight();
  await showSession();
  page.view.scrollTop = 0;
}

// The list and the reader fill the window: below the last table they would start half out of sight.
function bringIntoSight() {
  const { top } = page.browser.getBoundingClientRect();
  if (!narrow.matches && top > page.bar.offsetHeight + 1) page.browser.scrollIntoView({ behavior: "instant" });
}

function closeSession() {
  if (!state.session) return;
  state.session = "";
  writeAddress();
  showRows();
  showSession();
  page.list.focus({ preventScroll: true });
}

function chooseView(view) {
  state.view = view;
  writeAddress();
  showSession();
}

async function showSession() {
  opened += 1;
  const current = opened;
  const place = selectedPlace();
  page.browser.classList.toggle("reading", place >= 0);
  if (place < 0) {
    page.view.replaceChildren(state.session ? make("p", { class: "hint" }, "The session of this link is not in this file.") : guide());
    return;
  }
  const tokens = state.view === "tokens" && data.index.sampled.includes(place);
  let record, pieces;
  try {
    [record, pieces] = await Promise.all([readSession(place), tokens ? readTokens(place) : null]);
  } catch (error) {
    page.view.replaceChildren(make("p", { class: "hint" }, `This session cannot be read, the file is damaged (${error.message}).`));
    return;
  }
  if (current !== opened) return;
  const body = make("div", { class: "session-body" }, tokens ? tokenView(pieces) : conversation(record, place));
  const inside = make("div", { class: "session" }, sessionHead(record, place), body);
  inside.dataset.session = state.session;
  page.view.replaceChildren(inside);
}

function startSearch() {
  return runSearch(state.q, () => refresh({ keep: search.scanned > 1 && search.scanned < data.starts.length }));
}

let typing = 0;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(() => {
    state.q = page.query.value.trim();
    writeAddress();
    startSearch();
  }, SEARCH_DELAY_MS);
}

function clearFilters() {
  state.filters = {};
  state.q = page.query.value = "";
  writeAddress();
  startSearch();
  page.query.focus();
}

async function followAddress() {
  const query = state.q;
  readAddress();
  showTheme();
  page.query.value = state.q;
  if (state.q !== query) await startSearch();
  else refresh({ keep: true });
  scrollToSelected();
  showRows();
  if (state.session) bringIntoSight();
  await showSession();
}

// Links within the page: the address keeps what is being looked at.
function jump(event) {
  const link = event.target.closest("[data-jump]");
  if (!link) return;
  event.preventDefault();
  const target = document.getElementById(link.dataset.jump);
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function showTheme() {
  const wanted = new URLSearchParams(location.hash.slice(1)).get("theme");
  if (wanted === "dark" || wanted === "light") document.documentElement.dataset.theme = wanted;
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  writeAddress();
}

const KEYS = {
  j: () => moveSelection(1),
  k: () => moveSelection(-1),
  ArrowDown: () => moveSelection(1),
  ArrowUp: () => moveSelection(-1),
  "/": () => { bringIntoSight(); page.query.focus(); page.query.select(); },
  t: () => { if (data.index.sampled.includes(selectedPlace())) chooseView(state.view ? "" : "tokens"); },
  Escape: closeSession,
};

function pressed(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.closest("input, select, textarea")) {
    if (key === "Escape") { target.blur(); event.preventDefault(); }
    if (target === page.query && key === "ArrowDown") { page.list.focus(); event.preventDefault(); }
    return;
  }
  // Arrows belong to what is focused, unless that is the list: elsewhere they scroll.
  if (key.startsWith("Arrow") && target !== page.list) return;
  if (!KEYS[key]) return;
  event.preventDefault();
  KEYS[key]();
}

// While a run goes on: asks the server for a newer page, and takes over where one was.
function followRun() {
  const version = document.documentElement.dataset.version;
  const live = document.getElementById("live");
  const poll = async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      const now = answer.ok ? await answer.text() : version;
      live.textContent = "live";
      live.classList.remove("lost");
      if (now !== version && document.activeElement !== page.query) {
        history.replaceState({ list: page.list.scrollTop, view: page.view.scrollTop, top: scrollY }, "");
        location.reload();
        return;
      }
    } catch {
      live.textContent = "not served any more";
      live.classList.add("lost");
    }
    setTimeout(poll, POLL_MS);
  };
  setTimeout(poll, POLL_MS);
}

function takeOver() {
  const before = history.state;
  if (!before) return;
  page.list.scrollTop = before.list;
  page.view.scrollTop = before.view;
  scrollTo(0, before.top);
  showRows();
  history.replaceState(null, "");
}

async function start() {
  await readIndex();
  buildFilters();
  if (narrow.matches) document.querySelector(".more-filters").open = false;
  page.filters.addEventListener("submit", (event) => event.preventDefault());
  page.query.addEventListener("input", typed);
  page.query.addEventListener("focus", () => warmSearch(), { once: true });
  page.order.addEventListener("change", () => { state.sort = page.order.value; refresh(); writeAddress(); });
  page.clear.addEventListener("click", clearFilters);
  page.list.addEventListener("scroll", () => requestAnimationFrame(showRows), { passive: true });
  document.getElementById("theme").addEventListener("click", toggleTheme);
  addEventListener("resize", showRows);
  addEventListener("click", jump);
  addEventListener("keydown", pressed);
  addEventListener("hashchange", followAddress);
  await followAddress();
  takeOver();
  performance.mark("usable"); // read by the benchmark
  document.documentElement.dataset.ready = "true";
  if (document.documentElement.dataset.version) followRun();
  warmWhenIdle();
}

// A report without sessions has a head, figures and tables, which need no script.
if (page.list) start();
