// The data of the page: the index, decoded at once, and the blocks of sessions, decoded when they are looked at.

const KEPT_BLOCKS = 6; // decoded blocks that stay in memory
// Characters of searchable text that stay in memory; beyond, each search decodes anew. A phone has less of it.
const SEARCH_BUDGET = matchMedia("(max-width: 860px)").matches ? 80e6 : 400e6;
const IDLE_BUDGET = 80e6; // characters that are decoded before anybody asks
const SLICE_MS = 24; // how long a search may hold the page before it lets it breathe
const REPORT_MS = 250; // how often it shows what it has found so far

const packedText = (id) => document.getElementById(id).textContent;

async function inflate(packed) {
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(packed)
    : Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const inflating = new DecompressionStream("deflate");
  const writer = inflating.writable.getWriter();
  // Damaged data fails both ends; the reading one says so.
  writer.write(bytes).catch(() => {});
  writer.close().catch(() => {});
  const reader = inflating.readable.getReader();
  const decoder = new TextDecoder();
  let text = "";
  // Twice as fast as a Response over the stream, which waits for each chunk in a task of its own.
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    text += decoder.decode(value, { stream: true });
  }
}

const documentRead = new Promise((resolve) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve);
  else resolve();
});
const breathe = () => (window.scheduler?.yield ? scheduler.yield() : new Promise((resolve) => setTimeout(resolve, 0)));

const data = { index: null, starts: [], chars: [], blocks: new Map(), searchable: [], decoding: new Map(), kept: 0 };

async function readIndex() {
  data.index = JSON.parse(await inflate(packedText("index")));
  for (const facet of data.index.facets) facet.codes = Uint16Array.from(facet.codes);
}

// Where each block begins stands behind the blocks, since they are written one after another.
const blocksKnown = documentRead.then(async () => {
  const { counts, chars } = JSON.parse(await inflate(packedText("blocks")));
  let start = 0;
  data.starts = counts.map((count) => (start += count) - count);
  data.counts = counts;
  data.chars = chars;
});

const blockText = (block) => inflate(packedText(`block-${block}`));

function blockOf(place) {
  let block = data.starts.length - 1;
  while (data.starts[block] > place) block -= 1;
  return block;
}

// Texts go back to where numbers stand for them, and labels lose their "=".
function putTogether(value, texts) {
  if (typeof value === "string") return value[0] === "=" ? value.slice(1) : texts[Number(value)];
  if (Array.isArray(value)) return value.map((part) => putTogether(part, texts));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, putTogether(part, texts)]));
}

async function readSession(place) {
  await blocksKnown;
  const block = blockOf(place);
  let sessions = data.blocks.get(block);
  if (!sessions) {
    sessions = (await blockText(block)).split("\x1e");
    data.blocks.set(block, sessions);
    if (data.blocks.size > KEPT_BLOCKS) data.blocks.delete(data.blocks.keys().next().value);
  }
  const [structure, ...texts] = sessions[place - data.starts[block]].split("\x1f");
  return putTogether(JSON.parse(structure), texts);
}

async function readTokens(place) {
  await documentRead;
  return JSON.parse(await inflate(packedText(`tokens-${place}`)));
}

// The searchable texts of a block's sessions, in lower case and without their structure. Who comes while they are being
// decoded waits for the same ones.
function searchable(block) {
  if (data.searchable[block]) return data.searchable[block];
  if (!data.decoding.has(block)) data.decoding.set(block, decodeSearchable(block));
  return data.decoding.get(block);
}

async function decodeSearchable(block) {
  const sessions = (await blockText(block)).toLowerCase().split("\x1e");
  const texts = sessions.map((session) => session.slice(session.indexOf("\x1f") + 1));
  data.decoding.delete(block);
  if (data.kept + data.chars[block] <= SEARCH_BUDGET) {
    data.searchable[block] = texts;
    data.kept += data.chars[block];
  }
  return texts;
}

// Words and "phrases in quotes"; a session is found if it holds all of them.
function searchWords(query) {
  return [...query.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)].map((found) => found[1] ?? found[2]).filter(Boolean);
}

const search = { words: [], hits: null, scanned: 0, running: 0 };

// Goes through all blocks and calls `report` every now and then, with what is found so far in `search.hits`.
async function runSearch(query, report) {
  const words = searchWords(query);
  search.running += 1;
  const run = search.running;
  if (!words.length) {
    Object.assign(search, { words, hits: null, scanned: 0 });
    report();
    return;
  }
  await blocksKnown;
  if (run !== search.running) return;
  // What a longer word is in, the shorter one that it grew from was in as well.
  const complete = search.hits && search.scanned === data.starts.length;
  const narrower = complete && search.words.every((old) => words.some((word) => word.includes(old)));
  const before = narrower ? search.hits : null;
  const hits = new Uint8Array(data.index.size);
  Object.assign(search, { words, hits, scanned: 0 });
  let [last, reported] = [performance.now(), performance.now()];
  for (let block = 0; block < data.starts.length; block += 1) {
    const start = data.starts[block];
    if (!before || before.subarray(start, start + data.counts[block]).includes(1)) {
      const texts = data.searchable[block] ?? (await searchable(block));
      if (run !== search.running) return;
      texts.forEach((text, place) => {
        if ((!before || before[start + place]) && words.every((word) => text.includes(word))) hits[start + place] = 1;
      });
    }
    search.scanned = block + 1;
    if (performance.now() - last > SLICE_MS) {
      await breathe();
      if (run !== search.running) return;
      last = performance.now();
      if (last - reported < REPORT_MS || search.scanned === data.starts.length) continue;
      report();
      reported = performance.now();
    }
  }
  report();
}

// Decodes ahead of the first search: in idle moments if the file is not too large for it, and at the latest when
// somebody goes to the search field.
async function warmSearch(pause = breathe) {
  await blocksKnown;
  for (let block = 0; block < data.starts.length && data.kept < SEARCH_BUDGET; block += 1) {
    if (data.searchable[block]) continue;
    await pause();
    await searchable(block);
  }
}

const idle = () => new Promise((resolve) => (window.requestIdleCallback ? requestIdleCallback(resolve) : setTimeout(resolve, 50)));

async function warmWhenIdle() {
  await blocksKnown;
  if (data.chars.reduce((sum, chars) => sum + chars, 0) <= IDLE_BUDGET) await warmSearch(idle);
}
