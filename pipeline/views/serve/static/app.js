"use strict";
const $ = (id) => document.getElementById(id);
const state = { about: null, dialogue: null, first: 0, total: 0, busy: false };

const element = (name, values = {}, ...children) => {
  const made = Object.assign(document.createElement(name), values);
  made.append(...children);
  return made;
};

const say = (text, error = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
};

async function ask(path, values) {
  const options = values === undefined ? {} : values instanceof Blob
    ? { method: "POST", body: values }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || "the server answered " + answer.status);
  return found;
}

// One request at a time: a second click while the first is on its way would be a turn said twice.
async function act(work, done = "") {
  if (state.busy) return;
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
    say(done);
  } catch (error) {
    say(error.message, true);
  } finally {
    state.busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

const picture = (card, width) => card.src
  ? element("img", { src: card.number === null ? card.src : card.src + "?w=" + width, alt: card.words, loading: "lazy" })
  : element("span", { className: "card", textContent: card.words });

const thumb = (card) => element("div", { className: "thumb" }, picture(card, 192));

function tile(card, onclick, place = null) {
  const made = element("button", { type: "button", className: "tile", onclick }, picture(card, 192));
  made.title = card.id || card.words;
  if (place !== null) {
    made.append(element("span", { className: "place" }, element("span", { textContent: place }), element("span", { textContent: card.score.toFixed(3) })));
    made.setAttribute("aria-label", "Result " + place + ": " + card.words);
  }
  return element("li", {}, made);
}

// ---- start

async function browse(append) {
  const query = new URLSearchParams({ category: $("category").value, q: $("find").value, first: append ? state.first : 0 });
  const found = await ask("api/images?" + query);
  const tiles = found.images.map((card) => tile(card, () => begin({ image: card.number })));
  if (append) $("catalogue").append(...tiles); else $("catalogue").replaceChildren(...tiles);
  state.first = found.first + found.images.length;
  state.total = found.total;
  $("more").hidden = state.first >= state.total;
  $("count").textContent = state.total ? state.first.toLocaleString() + " of " + state.total.toLocaleString() + " images" : "No image has these words.";
}

const models = () => [$("model").value, $("other").value].filter((name, n, all) => name && all.indexOf(name) === n);

const begin = (start) => act(async () => {
  show(await ask("api/dialogues", { category: $("category").value, models: models(), ...start }));
  $("text").focus();
}, "Now say what should be different.");

const upload = (file) => act(async () => {
  if (file.size > state.about.limits.upload_bytes) throw new Error("The file is larger than " + state.about.limits.upload_bytes / 1e6 + " MB.");
  const query = new URLSearchParams({ category: $("category").value });
  models().forEach((name) => query.append("model", name));
  show(await ask("api/uploads?" + query, file));
  $("text").focus();
}, "Now say what should be different.");

function anew() {
  state.dialogue = null;
  history.replaceState(null, "", location.pathname);
  $("dialogue").hidden = $("answers").hidden = true;
  $("begin").hidden = false;
  $("text").value = "";
  say("");
  $("find").focus();
}

// ---- dialogue

const path = (name = "") => "api/dialogues/" + state.dialogue.id + (name ? "/" + name : "");
const change = (name, values, done) => act(async () => show(await ask(path(name), values)), done);

function show(dialogue) {
  state.dialogue = dialogue;
  history.replaceState(null, "", "#" + dialogue.id);
  $("begin").hidden = true;
  $("dialogue").hidden = false;
  const turns = dialogue.turns.map((turn, n) => {
    const moves = element("div", { className: "move" });
    const swap = (with_) => {
      const order = dialogue.turns.map((_, i) => i);
      [order[n], order[with_]] = [order[with_], order[n]];
      return change("permute", { order }, "The turns were heard anew in this order.");
    };
    if (dialogue.turns.length > 1) {
      moves.append(
        element("button", { type: "button", textContent: "↑", disabled: n === 0, title: "Say this earlier", ariaLabel: "Say turn " + (n + 1) + " earlier", onclick: () => swap(n - 1) }),
        element("button", { type: "button", textContent: "↓", disabled: n === dialogue.turns.length - 1, title: "Say this later", ariaLabel: "Say turn " + (n + 1) + " later", onclick: () => swap(n + 1) }));
    }
    return element("li", {}, thumb(turn.reference), element("div", { className: "said" }, element("span", { className: "soft small", textContent: "turn " + (n + 1) + " " }), element("q", { textContent: turn.text })), moves);
  });
  $("turns").replaceChildren(...turns);
  $("reference").replaceChildren(thumb(dialogue.chosen));
  $("back").disabled = !dialogue.turns.length;
  $("export").hidden = !dialogue.exports;
  $("export").href = path("export");
  $("save").hidden = !(dialogue.exports && state.about.saves);
  $("answers").hidden = !dialogue.turns.length;
  $("results").className = "columns" + (dialogue.models.length > 1 ? " two" : "");
  $("results").replaceChildren(...dialogue.models.map((model) => {
    const known = state.about.models.find((one) => one.label === model.label);
    const items = model.results.map((card, n) => {
      const item = tile(card, () => change("choose", { image: card.number }, "Your next words refer to result " + (n + 1) + "."), n + 1);
      item.firstChild.setAttribute("aria-pressed", String(card.number === dialogue.chosen.number));
      return item;
    });
    return element("div", {}, element("h3", { textContent: known ? known.title : model.label }), element("span", { className: "soft small", textContent: model.label + (known ? ", run " + known.run : "") }),
      element("ol", { className: "grid", ariaLabel: "Results of " + model.label }, ...items));
  }));
  $("model").value = dialogue.models[0].label;
  $("other").value = dialogue.models[1] ? dialogue.models[1].label : "";
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    show(await ask(path("say"), { text: $("text").value }));
    $("text").value = "";
  }, "Turn " + (state.dialogue.turns.length + 1) + ": results below.");
});
$("back").addEventListener("click", () => change("back", {}, "The last turn is taken back."));
$("save").addEventListener("click", () => act(() => ask(path("save"), {}), "Saved."));
$("anew").addEventListener("click", anew);
$("more").addEventListener("click", () => act(() => browse(true)));
$("describe").addEventListener("submit", (event) => { event.preventDefault(); begin({ description: $("description").value }); });
$("upload").addEventListener("change", () => { const file = $("upload").files[0]; if (file) upload(file).finally(() => { $("upload").value = ""; }); });
$("category").addEventListener("change", () => { if (state.dialogue) anew(); act(() => browse(false)); });
for (const id of ["model", "other"]) $(id).addEventListener("change", () => { if (state.dialogue) change("models", { models: models() }, "The same turns, as these models answer them."); });
let waiting;
$("find").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => browse(false).catch((error) => say(error.message, true)), 200); });

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && event.target.classList.contains("tile")) {
    const tiles = [...event.target.closest("ul,ol").querySelectorAll(".tile")];
    const next = tiles[tiles.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1)];
    if (next) { next.focus(); event.preventDefault(); }
    return;
  }
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === "/") { (state.dialogue ? $("text") : $("find")).focus(); event.preventDefault(); }
  else if (event.key === "b" && state.dialogue) $("back").click();
  else if (event.key === "n" && state.dialogue) anew();
  else if (/^[1-9]$/.test(event.key) && state.dialogue) {
    const one = document.querySelectorAll("#results > div:first-child .tile")[Number(event.key) - 1];
    if (one) { one.focus(); one.click(); }
  }
});

// ---- the page opens

act(async () => {
  const about = state.about = await ask("api/about" + location.search);
  if (location.search) history.replaceState(null, "", location.pathname + location.hash);
  $("category").append(...Object.entries(about.categories).map(([name, count]) => element("option", { value: name, textContent: name + " (" + count.toLocaleString() + ")" })));
  const options = () => about.models.map((one) => element("option", { value: one.label, textContent: one.label }));
  $("model").append(...options());
  $("other").append(element("option", { value: "", textContent: "nothing" }), ...options());
  $("upload-box").hidden = about.starts !== "upload";
  $("describe").hidden = about.starts !== "describe";
  $("text").maxLength = $("description").maxLength = about.limits.text;
  if (!about.live) {
    $("catalogue-only").hidden = $("cached-only").hidden = false;
    $("catalogue-only").textContent = "No extractor is loaded, so a dialogue starts from a catalog image. " + about.why_not_live;
    $("cached-only").textContent = "No extractor is loaded: only texts that are already cached can be said. Suggestions appear as you type.";
    $("known").append(...about.texts.map((text) => element("option", { value: text })));
  }
  const known = location.hash.slice(1);
  if (known) {
    try { show(await ask("api/dialogues/" + encodeURIComponent(known))); $("category").value = state.dialogue.category; } catch { anew(); }
  }
  await browse(false);
});
