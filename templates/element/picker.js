// Written by matrix-metal. A sticker picker: a widget of Matrix clients, with which it speaks the Widget API by messages between
// windows. What it sends is in no way secret; the web server decides who may show it in a frame.
"use strict";

const words = {
  en: { search: "Search", none: "There are no stickers yet.", unlike: "There is no such sticker.", failed: "The sticker was not sent.", away: "The stickers cannot be loaded." },
  zh: { search: "搜索", none: "还没有贴纸。", unlike: "没有这样的贴纸。", failed: "贴纸没有发送。", away: "无法加载贴纸。" },
};
const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const text = words[language];
const parameters = new URLSearchParams(location.search);
const [search, packs, stickers, said] = ["search", "packs", "stickers", "said"].map((id) => document.getElementById(id));
// A client says what it calls this widget in the address, and in each of its messages.
let widgetId = parameters.get("widgetId") || "";
const waiting = new Set();

function show(theme) {
  // Another value is what a client writes that knows nothing of themes: then the browser decides.
  if (/^(light|dark|black)/.test(theme || "")) {
    document.documentElement.dataset.theme = theme.startsWith("light") ? "light" : "dark";
  }
}

// What a client asks its widgets, and the answers.
const answers = {
  capabilities: () => ({ capabilities: ["m.sticker"] }),
  supported_api_versions: () => ({ supported_versions: ["0.0.1", "0.0.2"] }),
  notify_capabilities: () => ({}),
  visibility: () => ({}),
  theme_change: (data) => {
    show(data && data.name);
    return {};
  },
};

window.addEventListener("message", ({ source, data }) => {
  if (source !== window.parent || typeof data !== "object" || data === null) return;
  if (data.api === "fromWidget" && waiting.delete(data.requestId)) {
    said.textContent = data.response && data.response.error ? text.failed : "";
  } else if (data.api === "toWidget" && data.requestId && !data.response) {
    widgetId = data.widgetId || widgetId;
    const answer = Object.hasOwn(answers, data.action) ? answers[data.action] : () => ({ error: { message: "unknown action" } });
    window.parent.postMessage({ ...data, response: answer(data.data) }, "*");
  }
});

function send(sticker) {
  const requestId = `sticker-${Date.now()}-${Math.random().toString(36).slice(2)}`;
  const { body, url, info } = sticker;
  const content = { body, url, info: { ...info, thumbnail_url: url, thumbnail_info: info } };
  // Some applications show the page in a window of its own, and listen there: what they say is then their own.
  if (window.parent !== window) waiting.add(requestId);
  window.parent.postMessage(
    { api: "fromWidget", action: "m.sticker", requestId, widgetId, data: { name: body, description: body, content } },
    "*",
  );
}

function button(label, picture, action) {
  const made = document.createElement("button");
  const image = document.createElement("img");
  made.type = "button";
  made.title = label;
  image.alt = label;
  image.loading = "lazy";
  image.decoding = "async";
  image.src = `pictures/${picture}`;
  made.append(image);
  made.addEventListener("click", action);
  return made;
}

function fill(found) {
  for (const pack of found) {
    const section = document.createElement("section");
    const heading = document.createElement("h2");
    const grid = document.createElement("div");
    grid.className = "grid";
    heading.textContent = pack.name;
    for (const sticker of pack.stickers) {
      const made = button(sticker.body, sticker.picture, () => send(sticker));
      made.dataset.words = `${pack.name} ${sticker.body}`.toLowerCase();
      grid.append(made);
    }
    section.append(heading, grid);
    stickers.append(section);
    packs.append(button(pack.name, pack.stickers[0].picture, () => section.scrollIntoView()));
  }
  said.textContent = found.length ? "" : text.none;
  search.hidden = !found.length;
  packs.hidden = found.length < 2;
}

search.addEventListener("input", () => {
  const wanted = search.value.toLowerCase().split(/\s+/);
  for (const section of stickers.children) {
    const buttons = [...section.querySelectorAll(".grid button")];
    for (const each of buttons) each.hidden = !wanted.every((word) => each.dataset.words.includes(word));
    section.hidden = buttons.every((each) => each.hidden);
  }
  said.textContent = [...stickers.children].every((each) => each.hidden) ? text.unlike : "";
});

show(parameters.get("theme"));
document.documentElement.lang = language;
search.placeholder = text.search;
search.setAttribute("aria-label", text.search);
fetch("packs.json")
  .then((answer) => (answer.ok ? answer.json() : answer.status === 404 ? { packs: [] } : Promise.reject(answer.status)))
  .then(({ packs: found }) => fill(found))
  .catch(() => {
    said.textContent = text.away;
  });
