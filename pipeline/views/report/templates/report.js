"use strict";
// Pictures are kept once, as text; an <img> gets its own when its session is opened, so that a long report stays light.
(() => {
  const pixels = JSON.parse(document.getElementById("pixels").textContent);
  const fill = (root) => root.querySelectorAll("img[data-p]:not([src])").forEach((img) => {
    img.src = "data:image/jpeg;base64," + pixels[Number(img.dataset.p)];
  });
  const fillOpen = () => {
    document.querySelectorAll(".pair").forEach(fill);
    document.querySelectorAll(".session[open]").forEach(fill);
  };
  fillOpen();
  document.querySelectorAll(".session").forEach((one) => one.addEventListener("toggle", () => fill(one)));
  window.addEventListener("beforeprint", fillOpen);

  const input = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const sessions = [...document.querySelectorAll(".session")];
  if (!input) return;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const one of sessions) {
      const hit = words.every((word) => one.dataset.search.includes(word));
      one.hidden = !hit;
      count += hit ? 1 : 0;
    }
    shown.textContent = count === sessions.length ? "" : count + " of " + sessions.length + " shown";
  });
})();
