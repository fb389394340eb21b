"use strict";
const $ = (id) => document.getElementById(id);
const STEPS = [
  ["upload", "upload"],
  ["embed", "embedding"],
  ["search", "search"],
];
const COLUMNS = {
  float: ["Float", "cosine of the embeddings"],
  code: ["Code", "Hamming distance of the codes"],
  asymmetric: ["Re-ranked", "float query against codes"],
};
const FACTS = ["category", "creator", "license"];
const PATIENCE = "15"; // seconds for an answer; then it is one click away
/* What the API's errors are to somebody with a photo, by their codes. */
const SENTENCES = {
  invalid_image: (message) => `This photo cannot be read: ${message}`,
  empty_input: () => "This file is empty.",
  image_aborted: () => "The embedding server ended twice while it worked on this photo, which is not sent again. Use another one.",
  overloaded: () => "The embedding server has too much work at the moment. Try again soon.",
  unavailable: () => "The embedding server is not answering. Try again in a moment.",
  deadline_exceeded: () => "The embedding server did not answer in time. Try again.",
};
const REFUSED = ["invalid_image", "empty_input", "image_aborted", "body_too_large"];
const LEAST = 0.04; // the smallest crop, as a fraction of a side

const state = {
  blob: null, // the photo, or null
  like: null, // id of the row that is searched from, or null
  crop: null, // [x0, y0, x1, y1] as fractions, or null
  limits: null,
  embedded: null, // the photo and crop that were embedded last, and the answer
  code: null, // the query's code as bytes
  retry: null,
  running: null, // AbortController of the search under way
  chance: null, // bits from which on a hit may be chance, or null
  place: null, // where the focus goes when results arrive: an id, "first" or null
};
const photos = []; // those of this visit, by their numbers in the history

/* Server and index */

/* The answer of a route, and the milliseconds of each of its steps. */
async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("This page's own server is not answering. Is it still running?");
  }
  const text = await response.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(`The page's server answered with an error (${response.status}).`);
  }
  if (response.ok) return { answer, times: steps(response.headers.get("Server-Timing")) };
  const { message, code, param } = answer.error;
  throw Object.assign(new Error(sentence(SENTENCES[code]?.(message) ?? message)), {
    status: response.status, code, param,
  });
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?)]$/.test(whole) ? whole : `${whole}.`;
}

function steps(header) {
  const parts = (header || "").split(", ").filter(Boolean).map((part) => part.split(";dur="));
  return Object.fromEntries(parts.map(([name, milliseconds]) => [name, Number(milliseconds)]));
}

const post = (path, type, body, signal) => call(path, {
  method: "POST", body, signal, headers: { "Content-Type": type, "X-Request-Timeout": PATIENCE },
});

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

let statusTimer = 0;
async function refreshStatus() {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(refreshStatus, 5000);
  if (document.hidden) return;
  const [about, ready, models] = await Promise.allSettled(
    ["/v1/index", "/v1/health/ready", "/v1/models"].map((path) => call(path)),
  );
  if (about.status === "rejected") {
    showStatus("down", "Page server is down");
    $("status").title = about.reason.message;
    return;
  }
  const index = about.value.answer;
  const served = models.status === "fulfilled" ? models.value.answer.data : [];
  if (served.length) state.limits = served[0].limits;
  $("filter").hidden = !index.names.length;
  $("where").title = `Names: ${index.names.join(", ")}`;
  const name = index.names.find((one) => one !== "source") || index.names[0];
  $("where").placeholder = `${name} == 'text'`;
  const model = served.find((one) => one.version === index.version)
    ?? served.find((one) => one.compatible_with.includes(index.version));
  if (ready.status === "rejected" || !served.length) {
    showStatus("down", "Embedding server is down");
    $("status").title = (ready.reason || models.reason).message;
  } else if (!model) {
    showStatus("down", "Another embedder version");
    $("status").title = `The server runs embedder ${served[0].version}, but the index was made with `
      + `${index.version}. Their codes cannot be compared: back-fill the corpus again, or serve the `
      + "other version.";
  } else {
    const recall = index.recall ? ` · recall ${(100 * index.recall.mean).toFixed(1)} %` : "";
    showStatus("up", [
      `${index.rows.toLocaleString("en")} pictures${recall}`, ` · embedder ${index.version}`,
    ]);
    $("status").title = `engine ${model.engine}, ${index.kind} index`;
  }
}
document.addEventListener("visibilitychange", refreshStatus);

function showStatus(kind, text) {
  $("status").className = `status ${kind}`;
  const [main, optional] = [].concat(text);
  $("status-text").textContent = main;
  if (optional) {
    const more = document.createElement("span");
    more.className = "optional";
    more.textContent = optional;
    $("status-text").append(more);
  }
}

/* Errors */

function complain(message, retry) {
  $("alert-text").textContent = message;
  $("alert").hidden = false;
  state.retry = retry || null;
  $("alert-retry").hidden = !retry;
}

function settle() {
  $("alert").hidden = true;
}

$("alert-close").addEventListener("click", settle);
$("alert-retry").addEventListener("click", () => {
  settle();
  state.retry?.();
});

/* The photo */

function take(file) {
  if (!file) return;
  settle();
  if (state.limits && file.size > state.limits.image_bytes) {
    empty();
    const megabytes = (size) => `${(size / 1e6).toFixed(1)} MB`;
    complain(`This photo has ${megabytes(file.size)}; the limit is ${megabytes(state.limits.image_bytes)}.`);
    return;
  }
  photos.push(file);
  go({ photo: photos.length - 1 }, location.pathname);
}

function showPhoto(url, text, croppable) {
  leavePhoto();
  const photo = $("photo");
  photo.src = url;
  photo.alt = text;
  $("stage").classList.remove("empty");
  $("invite").hidden = true;
  $("photo-frame").hidden = false;
  $("photo-frame").classList.toggle("still", !croppable);
  $("photo-frame").classList.remove("unseen");
  $("tools").hidden = false;
  $("crop").hidden = $("tools-hint").hidden = !croppable;
}

function leavePhoto() {
  if ($("photo").src.startsWith("blob:")) URL.revokeObjectURL($("photo").src);
}

// The server reads formats that a browser may not show, such as HEIC.
$("photo").addEventListener("error", () => {
  $("photo-frame").classList.add("still", "unseen");
  $("crop").hidden = $("tools-hint").hidden = true;
});

function empty() {
  state.running?.abort();
  state.blob = state.like = null;
  setCrop(null);
  leavePhoto();
  $("photo").removeAttribute("src");
  $("stage").classList.add("empty");
  $("invite").hidden = false;
  $("photo-frame").hidden = $("tools").hidden = true;
  clear("Find what looks alike");
  $("examples").hidden = !$("example-grid").childElementCount;
}

/* History: an entry is a photo with its crop, a row of the index (in the address), or the start */

function go(entry, url) {
  history.pushState(entry, "", url);
  restore();
}

function restore() {
  const entry = history.state || {};
  const like = location.hash.match(/^#like=(.*)$/);
  state.like = like ? decoded(like[1]) : null;
  state.blob = like ? null : photos[entry.photo] || null;
  setCrop((state.blob && entry.crop) || null);
  if (state.like) showPhoto(`/picture?id=${encodeURIComponent(state.like)}`, state.like, false);
  else if (state.blob) showPhoto(URL.createObjectURL(state.blob), state.blob.name || "Your photo", true);
  else return empty();
  search();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("popstate", () => {
  state.place = history.state?.chosen || null;
  restore();
});

function searchFrom(id, event) {
  // Whoever comes back finds the card that was chosen; a key press counts no clicks.
  history.replaceState({ ...history.state, chosen: id }, "");
  state.place = event.detail === 0 ? "first" : null;
  go(null, `#like=${encodeURIComponent(id)}`);
  scrollTo({ top: 0 });
}

$("choose").addEventListener("click", () => $("file").click());
$("change").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take($("file").files[0]);
  $("file").value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});
const holdsFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!holdsFiles(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});

/* The crop box */

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function setCrop(crop) {
  state.crop = crop;
  $("box").hidden = $("shade").hidden = !crop;
  $("crop").classList.toggle("on", Boolean(crop));
  $("crop").textContent = crop ? "Whole photo" : "Crop";
  if (!crop) return;
  const [x0, y0, x1, y1] = crop.map((value) => 100 * value);
  for (const id of ["box", "shade"]) {
    Object.assign($(id).style, {
      left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%`,
    });
  }
}

function fraction(event) {
  const frame = $("photo-frame").getBoundingClientRect();
  return [
    clamp((event.clientX - frame.left) / frame.width, 0, 1),
    clamp((event.clientY - frame.top) / frame.height, 0, 1),
  ];
}

function spanned([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}

const wide = ([x0, y0, x1, y1]) => x1 - x0 >= LEAST && y1 - y0 >= LEAST;

function shifted([x0, y0, x1, y1], dx, dy) {
  const x = clamp(dx, -x0, 1 - x1);
  const y = clamp(dy, -y0, 1 - y1);
  return [x0 + x, y0 + y, x1 + x, y1 + y];
}

$("photo-frame").addEventListener("pointerdown", (event) => {
  if (!state.blob || event.button) return;
  event.preventDefault();
  const before = state.crop;
  const start = fraction(event);
  const edge = event.target.dataset.edge;
  const inBox = before && $("box").contains(event.target);
  let anchor = start;
  if (inBox && edge) {
    anchor = [before[edge.includes("w") ? 2 : 0], before[edge.includes("n") ? 3 : 1]];
  }
  const move = (moved) => {
    const at = fraction(moved);
    if (inBox && !edge) setCrop(shifted(before, at[0] - start[0], at[1] - start[1]));
    else if (wide(spanned(anchor, at))) setCrop(spanned(anchor, at));
  };
  const end = () => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    if (String(before) !== String(state.crop)) search();
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
});

let keyTimer = 0;
function searchSoon() {
  clearTimeout(keyTimer);
  keyTimer = setTimeout(search, 350);
}

$("crop").addEventListener("click", () => {
  setCrop(state.crop ? null : [0.2, 0.2, 0.8, 0.8]);
  if (state.crop) $("box").focus();
  search();
});

$("box").addEventListener("keydown", (event) => {
  const step = 0.02;
  const [dx, dy] = {
    ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
  }[event.key] || [0, 0];
  if (dx || dy) {
    event.preventDefault();
    const [x0, y0, x1, y1] = state.crop;
    const resized = [x0, y0, clamp(x1 + dx, x0 + LEAST, 1), clamp(y1 + dy, y0 + LEAST, 1)];
    setCrop(event.shiftKey ? resized : shifted(state.crop, dx, dy));
    searchSoon();
  } else if (event.key === "Escape") {
    setCrop(null);
    $("crop").focus();
    search();
  }
});

/* Searching */

async function search() {
  if (!state.blob && !state.like) return;
  clearTimeout(keyTimer);
  state.running?.abort();
  const running = new AbortController();
  state.running = running;
  $("columns").classList.add("busy");
  $("results").setAttribute("aria-busy", "true");
  try {
    if (state.blob) history.replaceState({ ...history.state, crop: state.crop }, "");
    const { embedded, columns, milliseconds } = await searched(running.signal);
    settle();
    const { times } = columns.find((one) => one.order === "code");
    const whole = milliseconds + (embedded ? embedded.milliseconds : 0);
    show(columns, { ...embedded?.times, search: times.search }, whole);
  } catch (error) {
    if (error.name === "AbortError") return;
    const refused = REFUSED.includes(error.code);
    const final = refused || [400, 404, 409].includes(error.status);
    complain(error.message, final ? null : search);
    // Results of an earlier photo under a new one would be wrong, and so would the photo.
    if (refused) empty();
    else clear("No results");
    if (!error.status || error.status > 500) refreshStatus();
  } finally {
    if (state.running === running) {
      $("columns").classList.remove("busy");
      $("results").removeAttribute("aria-busy");
    }
  }
}

/* The columns, all of one index: asked again where another one became active meanwhile. */
async function searched(signal, again = true) {
  const embedded = state.like ? null : await embed(signal);
  const query = embedded ? embedded.query : { id: state.like };
  const orders = $("compare").checked ? Object.keys(COLUMNS) : ["code"];
  const began = performance.now();
  try {
    const columns = await Promise.all(orders.map((order) => column(query, order, signal)));
    const versions = new Set(columns.flatMap((one) => one.answer?.version ?? []));
    if (versions.size === 1 || !again) {
      return { embedded, columns, milliseconds: performance.now() - began };
    }
  } catch (error) {
    if (error.code !== "version_mismatch" || !again) throw error;
  }
  state.embedded = null;
  return searched(signal, false);
}

/* The embedding of the photo's part; the last one is kept, for another condition or order. */
async function embed(signal) {
  const crop = state.crop ? state.crop.map((value) => value.toFixed(4)).join(",") : "";
  if (state.embedded?.blob === state.blob && state.embedded.crop === crop) return state.embedded;
  const options = new URLSearchParams({ encoding_format: "base64", ...(crop && { crop }) });
  const began = performance.now();
  const { answer, times } = await post(
    `/v1/embeddings?${options}`, "application/octet-stream", state.blob, signal,
  );
  state.embedded = {
    blob: state.blob,
    crop,
    query: {
      embedding: answer.data[0].embedding, version: answer.version, engine: answer.engine,
    },
    times,
    milliseconds: performance.now() - began,
  };
  return state.embedded;
}

/* One order's results. An order that the index cannot give has a sentence in their place. */
async function column(query, order, signal) {
  const where = $("where").value.trim();
  const wanted = { ...query, order, k: 12, group: true, ...(where && { where }) };
  try {
    const found = await post("/v1/search", "application/json", JSON.stringify(wanted), signal);
    return { order, ...found };
  } catch (error) {
    if (error.param !== "order") throw error;
    return { order, missing: error.message };
  }
}

function clear(heading) {
  $("columns").replaceChildren();
  $("anatomy").hidden = true;
  $("said").textContent = "";
  $("heading").textContent = heading;
  $("note").hidden = true;
}

$("compare").addEventListener("change", search);
$("where").addEventListener("change", search);
$("filter").addEventListener("submit", (event) => event.preventDefault());

/* Results */

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(columns, times, milliseconds) {
  const { answer } = columns.find((one) => one.order === "code");
  state.code = bytes(answer.query.code);
  state.chance = answer.chance;
  $("examples").hidden = true;
  const bits = 8 * state.code.length;
  const several = columns.length > 1;
  $("heading").textContent = state.like ? `Like ${answer.query.title}`
    : state.crop ? "Like this part of your photo" : "Like your photo";
  const count = answer.data.filter(nearerThanChance).length;
  const nearer = state.chance ? " nearer than chance" : "";
  const among = $("where").value.trim() ? ` where ${$("where").value.trim()}` : "";
  $("said").textContent = `${count || "No"} ${count === 1 ? "result" : "results"}${nearer}${among}, `
    + `in ${milliseconds.toFixed(0)} ms.${count ? " Choose one to search from it." : ""}`;
  $("note").textContent = sentence(answer.warning || "");
  $("note").hidden = !answer.warning;
  $("columns").className = several ? "columns several" : "columns";
  $("columns").replaceChildren(...columns.map((column) => drawColumn(column, bits, several)));
  $("anatomy").hidden = false;
  $("code-size").textContent = `${bits.toLocaleString("en")} bits, ${bits / 8} bytes`;
  drawRaster(null);
  drawTimes(times, milliseconds);
  if (state.place) takeFocus(state.place);
  state.place = null;
}

const nearerThanChance = (hit) => !state.chance || hit.distance < state.chance;

function takeFocus(place) {
  const cards = [...$("columns").querySelectorAll(".card")];
  const card = place === "first" ? cards[0] : cards.find((one) => one.dataset.id === place);
  card?.closest("details")?.setAttribute("open", "");
  card?.focus({ preventScroll: place === "first" });
}

function drawColumn(column, bits, several) {
  const section = element("section", "column");
  if (several) {
    const head = element("div", "column-head");
    const [title, how] = COLUMNS[column.order];
    head.append(element("h2", "", title), element("p", "hint", how));
    section.append(head);
    section.setAttribute("aria-label", title);
  }
  if (column.missing) {
    section.append(element("p", "missing", column.missing));
    return section;
  }
  const all = column.answer.data;
  const cards = (hits) => {
    const grid = element("div", "grid");
    grid.append(...hits.flatMap((hit) => drawCell(hit, 1 + all.indexOf(hit), bits, column.order)));
    return grid;
  };
  const far = several ? [] : all.filter((hit) => !nearerThanChance(hit));
  section.append(cards(all.filter((hit) => !far.includes(hit))));
  if (far.length) {
    const rest = element("details", "far");
    const [bound, whole] = [state.chance, bits].map((count) => count.toLocaleString("en"));
    rest.append(element("summary", "", `${far.length} no nearer than chance: ${bound} of ${whole} bits or more differ`), cards(far));
    rest.open = far.length === all.length;
    section.append(rest);
  }
  return section;
}

/* A hit, and under it those of the same code, which would tell nothing more in cards of their own. */
function drawCell(hit, rank, bits, order) {
  const card = drawCard(hit, rank, bits, order);
  if (!hit.same_count) return [card];
  const cell = element("div", "cell");
  const more = element("button", "plain", `${hit.same_count} more with this code`);
  more.type = "button";
  more.addEventListener("click", () => {
    const same = hit.same.map((one) => drawCard({ ...one, code: hit.code }, rank, bits, order));
    more.remove();
    cell.after(...same);
    same[0].focus();
  });
  cell.append(card, more);
  return [cell];
}

function drawCard(hit, place, bits, order) {
  const card = element("button", nearerThanChance(hit) ? "card" : "card chance");
  card.type = "button";
  card.dataset.id = hit.id;
  const tile = element("span", "tile");
  const picture = element("img");
  const blank = () => tile.replaceChildren(element("span", "blank", hit.title), rank);
  const rank = element("span", "rank", String(place));
  picture.alt = "";
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.addEventListener("error", blank);
  tile.append(picture, rank);
  if (hit.picture) picture.src = hit.picture;
  else blank();
  const byCode = order === "code";
  const measure = element("span", "measure");
  const text = !byCode ? hit.score.toFixed(3)
    : hit.distance ? `${hit.distance} ${hit.distance === 1 ? "bit differs" : "bits differ"}` : "same code";
  const meter = element("span", "meter");
  const fill = element("i");
  const percent = (distance) => `${100 * clamp(1 - (2 * distance) / bits, 0, 1)}%`;
  fill.style.width = byCode ? percent(hit.distance) : `${100 * clamp(hit.score, 0, 1)}%`;
  meter.append(fill);
  if (byCode && state.chance) {
    const mark = element("b");
    mark.style.left = percent(state.chance);
    meter.append(mark);
    meter.title = `The mark is where chance begins, at ${state.chance} bits.`;
  }
  measure.append(element("span", "", text), meter);
  card.append(tile, element("span", "name", hit.title), measure);
  const said = FACTS.map((name) => hit.metadata[name]).filter(Boolean).join(" · ");
  card.title = said ? `${hit.title} · ${said}` : hit.title;
  card.setAttribute("aria-label", `${place}. ${hit.title}, ${byCode ? text : "cosine " + text}${nearerThanChance(hit) ? "" : ", no nearer than chance"}`);
  card.addEventListener("click", (event) => searchFrom(hit.id, event));
  card.addEventListener("pointerenter", () => drawRaster(hit));
  card.addEventListener("focus", () => drawRaster(hit));
  card.addEventListener("pointerleave", () => drawRaster(null));
  card.addEventListener("blur", () => drawRaster(null));
  return card;
}

$("columns").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches(".card")) return;
  event.preventDefault();
  const cards = [...$("columns").querySelectorAll(".card")].filter((card) => card.checkVisibility());
  cards[clamp(cards.indexOf(event.target) + step, 0, cards.length - 1)].focus();
});

/* The code as a raster, and the time as a bar */

function drawRaster(hit) {
  const code = state.code;
  const others = hit ? bytes(hit.code) : code;
  const bits = 8 * code.length;
  const across = 64;
  const down = Math.ceil(bits / across);
  const canvas = $("raster");
  canvas.width = across * 5;
  canvas.height = down * 5;
  const style = getComputedStyle(document.documentElement);
  const [ink, empty, accent] = ["--ink", "--line", "--mark"].map((name) => style.getPropertyValue(name));
  const pen = canvas.getContext("2d");
  let differ = 0;
  for (let bit = 0; bit < bits; bit += 1) {
    const mask = 128 >> (bit % 8);
    const set = code[bit >> 3] & mask;
    const differs = set !== (others[bit >> 3] & mask);
    differ += differs;
    pen.fillStyle = differs ? accent : set ? ink : empty;
    pen.globalAlpha = hit && !differs ? 0.45 : 1;
    pen.fillRect(5 * (bit % across), 5 * Math.floor(bit / across), 4, 4);
  }
  $("raster-note").textContent = hit
    ? `${differ} of ${bits} bits differ from ${hit.title}.`
    : "One cell a bit, filled where the embedding is above zero.";
}

function drawTimes(times, total) {
  const known = STEPS.filter(([name]) => name in times);
  const rest = Math.max(0, total - known.reduce((sum, [name]) => sum + times[name], 0));
  $("time-total").textContent = `${total.toFixed(1)} ms`;
  const bar = [];
  const rows = [];
  for (const [name, label, value] of [...known.map(([one, text]) => [one, text, times[one]]), ["rest", "browser and page", rest]]) {
    const part = element("i");
    part.style.flex = `${value} 0 0`;
    part.style.background = `var(--${name === "rest" ? "line" : name})`;
    bar.push(part);
    const key = element("i");
    key.style.background = part.style.background;
    rows.push(key, element("dt", "", label), element("dd", "", `${value.toFixed(value < 10 ? 2 : 1)} ms`));
  }
  $("bar").replaceChildren(...bar);
  $("times").replaceChildren(...rows);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (state.code) drawRaster(null);
});

async function offerExamples() {
  try {
    const { answer } = await call("/examples");
    const cards = answer.data.map((one) => {
      const card = element("button", "card");
      card.type = "button";
      const tile = element("span", "tile");
      const picture = element("img");
      picture.alt = "";
      const blank = () => tile.replaceChildren(element("span", "blank", one.title));
      picture.addEventListener("error", blank);
      tile.append(picture);
      if (one.picture) picture.src = one.picture;
      else blank();
      card.append(tile, element("span", "name", one.title));
      card.addEventListener("click", (event) => searchFrom(one.id, event));
      return card;
    });
    $("example-grid").replaceChildren(...cards);
    $("examples").hidden = !cards.length || Boolean(state.blob || state.like);
  } catch (error) {
    complain(error.message, offerExamples);
  }
}

refreshStatus();
offerExamples();
restore();
