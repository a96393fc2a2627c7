"use strict";
const $ = (id) => document.getElementById(id);
const state = { name: "", view: null, since: 0, busy: false };

const element = (tag, values = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
};
const picture = (card) => card.src ? element("img", { src: card.src, alt: card.words }) : element("span", { className: "card", textContent: card.words });

async function post(path, values) {
  if (state.busy) return;
  state.busy = true;
  try {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name: state.name, ...values }) });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error || "the server answered " + answer.status);
    $("status").textContent = "";
    $("status").classList.remove("error");
    show(found);
  } catch (error) {
    $("status").textContent = error.message;
    $("status").classList.add("error");
  } finally {
    state.busy = false;
  }
}

const choose = (option) => post("api/answer", { question: state.view.question.number, option, seconds: (performance.now() - state.since) / 1000 });

function show(view) {
  state.view = view;
  state.name = view.name;
  state.since = performance.now();
  sessionStorage.setItem("name", view.name);
  $("join").hidden = true;
  $("progress").hidden = false;
  $("count").textContent = view.answered + " of " + view.total + " answered";
  $("bar").max = view.total;
  $("bar").value = view.answered;
  $("ask").hidden = !view.question;
  $("done").hidden = !!view.question;
  if (!view.question) { $("done-title").focus(); return; }
  const { turns, options, given } = view.question;
  $("turns").replaceChildren(...turns.map((turn, n) => element("li", {},
    element("div", { className: "thumb" }, picture(turn.reference)),
    element("div", { className: "said" }, element("span", { className: "soft small", textContent: "turn " + (n + 1) + " " }), element("q", { textContent: turn.text })))));
  $("options").replaceChildren(...options.map((images, n) => {
    const made = element("button", { type: "button", className: "tile", onclick: () => choose(n) },
      element("span", { className: "set" }, ...images.map(picture)), element("span", { className: "key" }, element("kbd", { textContent: String(n + 1) }), " this one"));
    made.setAttribute("aria-label", "Result " + (n + 1) + ": " + images.map((card) => card.words).join("; "));
    made.setAttribute("aria-pressed", String(!!given && given.option === n));
    return made;
  }));
  $("none").setAttribute("aria-pressed", String(!!given && given.option === null));
  $("back").disabled = view.place === 0;
  $("ask-title").focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

$("enter").addEventListener("submit", (event) => { event.preventDefault(); state.name = $("name").value; post("api/join", {}); });
$("none").addEventListener("click", () => choose(null));
$("back").addEventListener("click", () => post("api/question", { place: state.view.place - 1 }));
$("review").addEventListener("click", () => post("api/question", { place: state.view.total - 1 }));
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !state.view || !state.view.question) return;
  if (event.key === "0") choose(null);
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= state.view.question.options.length) choose(Number(event.key) - 1);
});
history.replaceState(null, "", location.pathname);
const known = sessionStorage.getItem("name");
if (known) { state.name = known; post("api/join", {}); }
