// The page at /: a request, its text as it grows, and what each token's input was.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const output = byId("output");

// Longest length with a shade of its own; what is longer has the same.
const SHADES = 5;
// The most probable tokens shown of each position.
const TOP = 5;

// Of the text shown: what the server said of each token.
let tokens = [];
let promptIds = [];
// The model, with its table, that said it.
let saidBy = null;
let running = null;
let model = null;

// ---- small helpers

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};

// Spaces and line breaks that would not be seen.
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "(nothing)";

const showError = (message) => {
  byId("error").textContent = message;
  byId("error").hidden = !message;
};

const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "-");

const shade = (length) => (length < 2 ? "" : `m${Math.min(length, SHADES)}`);

// The API key, where the server wants one: kept until the tab is closed.
const KEY = "scone-api-key";
let keyDeclined = false;

function askForKey() {
  if (keyDeclined) return false;
  const key = window.prompt("This server wants an API key:", "");
  keyDeclined = !key;
  if (key) sessionStorage.setItem(KEY, key.trim());
  return !keyDeclined;
}

async function call(path, body, signal) {
  const options = { signal, headers: {} };
  const key = sessionStorage.getItem(KEY);
  if (key) options.headers.authorization = `Bearer ${key}`;
  if (body) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  if (response.status === 401 && askForKey()) return call(path, body, signal);
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `the server answered ${response.status}`);
}

// ---- the model

// Asks until a server answers: it may be loading, or started again.
async function findModel() {
  try {
    const list = await (await call("/v1/models")).json();
    model = list.data[0];
    showTables(list.data);
    const longest = Math.max(...list.data.map(({ scone }) => scone.max_n ?? 0));
    const table = model.scone.max_n
      ? `f-grams of up to ${model.scone.max_n} tokens, table ${model.scone.table_id.slice(0, 8)} (${model.scone.embed_mode})`
      : longest ? "no default table" : "a plain model, no f-grams";
    byId("model").textContent = `${model.id}: ${table}, context of ${model.max_model_len} tokens`;
    const chat = model.scone.has_chat_template;
    byId("chat-kind").disabled = !chat;
    byId("no-chat").hidden = chat;
    if (!chat) form.elements.kind.value = "completion";
    showLegend(longest);
  } catch (error) {
    model = null;
    const said = error instanceof TypeError ? "the server cannot be reached" : error.message;
    byId("model").textContent = `${said}; trying again …`;
    setTimeout(findModel, 1000);
  }
}

// One choice a table, `none` among them; what was chosen stays chosen when a server comes back.
function showTables(models) {
  const options = () => models.map(({ id }) => element("option", { value: id }, id));
  const fill = (select, made) => {
    const { value } = select;
    select.replaceChildren(...made);
    if (made.some((option) => option.value === value)) select.value = value;
  };
  fill(byId("table"), options());
  fill(byId("beside"), [element("option", { value: "" }, "nothing"), ...options()]);
  fill(byId("third"), [element("option", { value: "" }, "nothing"), ...options()]);
  byId("tables").hidden = models.length < 2;
}

function showLegend(maxN) {
  const items = [element("li", {}, "token embedding")];
  for (let length = 2; length <= Math.min(maxN, SHADES); length++) {
    const more = length === SHADES && maxN > SHADES ? " and more" : "";
    items.push(element("li", { class: shade(length) }, `${length} tokens${more}`));
  }
  byId("legend").replaceChildren(...items);
}

// ---- the request

// Numbers in a list: token ids.
function listed(text) {
  return text.split(/[\s,]+/).filter((part) => part !== "").map(Number);
}

// "7:-100, 12:5": token ids with what is added to their logits.
function biases(text) {
  const pairs = text.split(/[\s,]+/).filter((part) => part !== "");
  return Object.fromEntries(pairs.map((pair) => {
    const [id, bias] = pair.split(":");
    return [id, Number(bias)];
  }));
}

const NUMBERS = [
  "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "min_tokens", "seed",
];

function request() {
  const fields = form.elements;
  const body = {
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    return_match_lengths: true,
  };
  for (const name of NUMBERS) {
    if (fields[name].value !== "") body[name] = Number(fields[name].value);
  }
  const stops = fields.stop.value.split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (fields.stop_token_ids.value) body.stop_token_ids = listed(fields.stop_token_ids.value);
  if (fields.logit_bias.value) body.logit_bias = biases(fields.logit_bias.value);
  if (fields.ignore_eos.checked) body.ignore_eos = true;
  if (byId("table").value) body.model = byId("table").value;
  const prompt = byId("prompt").value;
  if (fields.kind.value === "chat") {
    body.messages = [{ role: "user", content: prompt }];
    body.logprobs = true;
    body.top_logprobs = TOP;
    return { path: "/v1/chat/completions", body };
  }
  body.prompt = prompt;
  body.logprobs = TOP;
  // The prompt is shown, shaded like the rest.
  body.echo = true;
  return { path: "/v1/completions", body };
}

async function generate() {
  if (running) return;
  keyDeclined = false;
  running = new AbortController();
  const { signal } = running;
  byId("go").disabled = true;
  byId("end").disabled = false;
  showError("");
  clearText();
  const figures = new Figures();
  const { path, body } = request();
  saidBy = body.model ?? null;
  try {
    figures.start();
    const others = Promise.all(columns(body).map((column) => column.fill(path, body, signal)));
    // Awaited below; a failure before that is not unheard.
    others.catch(() => {});
    const response = await call(path, body, signal);
    for await (const event of events(response.body)) take(event, figures);
    await others;
    byId("announce").textContent = `Done: ${figures.generated} tokens.`;
  } catch (error) {
    if (error.name === "AbortError") byId("announce").textContent = "Stopped.";
    else {
      const lost = error instanceof TypeError;
      showError(lost ? "The connection to the server was lost." : error.message);
      if (lost) findModel();
    }
  }
  running = null;
  byId("go").disabled = false;
  byId("end").disabled = true;
}

// The columns beside the first, one for each other table that was chosen.
function columns(body) {
  const others = [["other", byId("beside").value], ["third-column", byId("third").value]];
  for (const [id, model] of others) byId(id).hidden = !model;
  const chosen = others.filter(([, model]) => model);
  byId("name").hidden = chosen.length === 0;
  byId("name").textContent = body.model ?? "";
  // Chosen here, so that all have it.
  if (chosen.length > 0) body.seed ??= Math.floor(Math.random() * 2 ** 32);
  return chosen.map(([id, model]) => new Column(byId(id), model));
}

// The same request to another table.
class Column {
  #model;
  #output;
  #figures;

  constructor(section, model) {
    this.#model = model;
    section.querySelector("h3").textContent = model;
    this.#output = section.querySelector(".output");
    this.#figures = section.querySelector(".note");
    this.#output.replaceChildren();
    this.#figures.textContent = "";
  }

  async fill(path, body, signal) {
    const response = await call(path, { ...body, model: this.#model }, signal);
    const text = new TextDecoder();
    const count = { all: 0, matched: 0 };
    for await (const event of events(response.body)) {
      const choice = event.choices[0];
      if (!choice) continue;
      for (const token of choice.delta ? ofChat(choice) : ofCompletion(choice)) {
        const kind = token.prompt ? "given" : "";
        const said = text.decode(token.bytes, { stream: true });
        const attributes = { class: `token ${kind} ${shade(token.length)}`, "data-length": String(token.length) };
        this.#output.append(element("span", attributes, said));
        if (token.prompt) continue;
        count.all += 1;
        if (token.length >= 2) count.matched += 1;
      }
    }
    this.#figures.textContent = `${count.all} tokens, ${percent(count.matched, count.all)} chosen by the row of an f-gram.`;
  }
}

// The data of server-sent events; an error event is thrown.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the stream ended early");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === undefined) continue;
      if (data === "[DONE]") return;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      yield said;
    }
  }
}

// ---- the text

const encoder = new TextEncoder();

// A token of part of a character is "bytes:\xe2\x80".
function bytesOf(token) {
  if (!token.startsWith("bytes:\\x")) return encoder.encode(token);
  return Uint8Array.from(token.slice(8).split("\\x"), (hex) => parseInt(hex, 16));
}

// Decodes the tokens' bytes as they come; what is not whole yet waits.
let decoder = new TextDecoder();

function clearText() {
  tokens = [];
  promptIds = [];
  decoder = new TextDecoder();
  described.clear();
  chosen = -1;
  output.replaceChildren();
  byId("announce").textContent = "Generating …";
  byId("token").replaceChildren(element("p", { class: "note" }, "None is chosen."));
}

function take(event, figures) {
  if (event.usage) figures.end(event.usage);
  const choice = event.choices[0];
  if (!choice) return;
  if (choice.prompt_token_ids) promptIds = choice.prompt_token_ids;
  const news = choice.delta ? ofChat(choice) : ofCompletion(choice);
  const generated = figures.generated;
  for (const token of news) {
    add(token);
    if (!token.prompt) figures.token(token.length);
  }
  if (figures.generated > generated) figures.show();
  if (typeof choice.stop_reason === "string") cut(choice.stop_reason);
}

// With echo the first chunk has the prompt's tokens as well.
function ofCompletion(choice) {
  const { tokens: texts, token_logprobs, top_logprobs } = choice.logprobs;
  const prompt = choice.prompt_token_ids?.length ?? 0;
  return texts.map((text, i) => ({
    bytes: bytesOf(text),
    id: choice.token_ids[i],
    length: choice.match_lengths[i],
    logprob: token_logprobs[i],
    top: Object.entries(top_logprobs[i] ?? {}).sort((a, b) => b[1] - a[1]).slice(0, TOP),
    prompt: i < prompt,
  }));
}

function ofChat(choice) {
  return (choice.logprobs?.content ?? []).map((one, i) => ({
    bytes: Uint8Array.from(one.bytes),
    id: choice.token_ids[i],
    length: choice.match_lengths[i],
    logprob: one.logprob,
    top: one.top_logprobs.map((top) => [top.token, top.logprob]),
    prompt: false,
  }));
}

function add(token) {
  token.text = decoder.decode(token.bytes, { stream: true });
  const kind = token.prompt ? "given" : "";
  token.span = element("span", {
    class: `token ${kind} ${shade(token.length)}`,
    tabindex: tokens.length === 0 ? "0" : "-1",
    "data-index": String(tokens.length),
    "data-length": String(token.length),
  }, token.text);
  tokens.push(token);
  output.append(token.span);
}

// The stop string was said, and is not part of the text.
function cut(stop) {
  let left = stop.length;
  for (let i = tokens.length - 1; i >= 0 && left > 0; i--) {
    tokens[i].span.classList.add("cut");
    left -= tokens[i].text.length;
  }
}

// ---- one token

// The ids before a token: what the model had read when it said it. The prompt of a conversation is
// not shown; f-grams may begin in it.
function idsBefore(index) {
  const hidden = tokens[0].prompt ? [] : promptIds;
  return [...hidden, ...tokens.slice(0, index).map((token) => token.id)];
}

const ask = async (path, body) => (await call(path, saidBy ? { ...body, model: saidBy } : body)).json();

// F-grams of the text shown that were asked for, by table and ids: the next text may be of another version.
const described = new Map();

// The f-gram whose row was the input, which ends at the token before: its text, rank and count.
async function inputOf(index) {
  const ids = idsBefore(index).slice(-tokens[index].length);
  const key = `${saidBy} ${ids}`;
  if (!described.has(key)) described.set(key, await ask("/v1/fgrams/describe", { token_ids: ids }));
  return described.get(key);
}

function rankOf(fgram) {
  if (fgram.rank === null) return "Its rank and count are not known here.";
  const matched = fgram.match_count > 0 ? `, the longest match at ${fgram.match_count.toLocaleString("en")} of them` : "";
  return `Rank ${(fgram.rank + 1).toLocaleString("en")} of ${fgram.set_size.toLocaleString("en")} f-grams: `
    + `${fgram.count.toLocaleString("en")} times in the training text${matched}.`;
}

// What the row did, when that is asked for: the model is run with it and without.
async function explain(index, place) {
  place.replaceChildren(element("p", { class: "note" }, "The model is run twice …"));
  try {
    const said = await ask("/v1/fgrams/explain", { prompt: idsBefore(index), top: TOP });
    if (chosen !== index) return;
    const top = (list) => list.map((one) => [one.token, one.logprob]);
    const parts = [mostProbable("With the token embedding alone", top(said.with_token_embedding), tokens[index])];
    if (said.with_row) parts.unshift(mostProbable("With the row of the f-gram", top(said.with_row), tokens[index]));
    place.replaceChildren(...parts);
  } catch (error) {
    if (chosen === index) place.replaceChildren(element("p", { class: "error" }, error.message));
  }
}

// A button for that: with the mouse, with Tab, or Enter on the token. The answer takes the place of
// the list that is there.
function explainer(index, list) {
  const place = element("div", { class: "beside", id: "explained" }, ...list);
  const button = element("button", { type: "button", id: "explain" }, "What would the token embedding have said?");
  button.addEventListener("click", () => explain(index, place));
  return element("div", {}, button, place);
}

let chosen = -1;

async function choose(index) {
  if (index === chosen && output.querySelector(".chosen")) return;
  chosen = index;
  for (const span of output.querySelectorAll(".chosen, .source")) span.classList.remove("chosen", "source");
  const token = tokens[index];
  token.span.classList.add("chosen");
  for (const source of tokens.slice(Math.max(0, index - token.length), index)) {
    source.span.classList.add("source");
  }
  const said = element("p", {}, element("code", {}, visible(token.text)), ` token ${token.id}`);
  if (token.logprob !== null) {
    said.append(`, probability ${(100 * Math.exp(token.logprob)).toFixed(1)} %`);
  }
  const input = element("p");
  const parts = [said, input];
  const list = token.top.length > 0 ? [mostProbable("Most probable with this input", token.top, token)] : [];
  parts.push(...(token.length >= 2 ? [explainer(index, list)] : list));
  byId("token").replaceChildren(...parts);
  if (token.length >= 2) {
    const fgram = await inputOf(index).catch((error) => ({ error }));
    if (chosen !== index) return;
    if (fgram.error) input.append(fgram.error.message);
    else input.append("Its input was the row of the f-gram ", element("code", {}, visible(fgram.text)), `, ${token.length} tokens. ${rankOf(fgram)}`);
  } else if (index > 0 || !token.prompt) {
    input.append("Its input was the embedding of the token before: no f-gram ended there.");
  } else {
    input.append("It is the first token.");
  }
}

// The token that was said stands out.
function mostProbable(caption, top, token) {
  const rows = top.map(([text, logprob]) => {
    const p = Math.exp(logprob);
    const meter = element("meter", { min: "0", max: "1", value: String(p), "aria-label": "probability" });
    const same = text === token.text;
    return element("tr", same ? { class: "same" } : {},
      element("td", {}, element("code", {}, visible(text)), same ? " (said)" : ""),
      element("td", {}, `${(100 * p).toFixed(1)} %`),
      element("td", {}, meter));
  });
  return element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {},
      element("th", { scope: "col" }, "token"),
      element("th", { scope: "col" }, "probability"),
      element("th", { scope: "col" }, "as a bar"))),
    element("tbody", {}, ...rows));
}

// A click, or a touch, gives a token the focus and so keeps it: its button is in reach then, and keeps it too.
output.addEventListener("mouseover", (event) => {
  const span = event.target.closest(".token");
  const kept = document.activeElement.closest(".token, #explain");
  if (span && !kept) choose(Number(span.dataset.index));
});

output.addEventListener("focusin", (event) => {
  const span = event.target.closest(".token");
  if (!span) return;
  for (const other of output.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  span.tabIndex = 0;
  choose(Number(span.dataset.index));
});

// One stop for the Tab key, arrows inside. Enter asks what the row did.
output.addEventListener("keydown", (event) => {
  const span = event.target.closest(".token");
  if (!span || tokens.length === 0) return;
  const at = Number(span.dataset.index);
  if (event.key === "Enter" && !event.ctrlKey) {
    event.preventDefault();
    byId("explain")?.click();
    return;
  }
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  tokens[Math.min(Math.max(to, 0), tokens.length - 1)].span.focus();
});

// ---- figures

class Figures {
  generated = 0;
  #lengths = new Map();
  #began = 0;
  #first = 0;

  start() {
    this.#began = performance.now();
    for (const id of ["rate", "first", "matched", "lookup"]) byId(id).textContent = "-";
    byId("lengths").replaceChildren();
  }

  token(length) {
    this.#first ||= performance.now();
    this.generated += 1;
    this.#lengths.set(length, (this.#lengths.get(length) ?? 0) + 1);
  }

  show() {
    const now = performance.now();
    byId("first").textContent = `${(this.#first - this.#began).toFixed(0)} ms`;
    if (now > this.#first) {
      byId("rate").textContent = (((this.generated - 1) * 1000) / (now - this.#first)).toFixed(1);
    }
    const rows = [...this.#lengths.entries()].sort((a, b) => a[0] - b[0]).map(([length, count]) => {
      const bar = element("span", { class: `bar ${shade(length)}`, "aria-hidden": "true" });
      bar.style.width = `${(100 * count) / this.generated}%`;
      return element("tr", {},
        element("th", { scope: "row" }, length < 2 ? "token embedding" : String(length)),
        element("td", {}, `${count} (${percent(count, this.generated)})`),
        element("td", {}, bar));
    });
    byId("lengths").replaceChildren(...rows);
  }

  end(usage) {
    const own = usage.scone;
    byId("matched").textContent = percent(own.matched_positions, own.positions);
    byId("lookup").textContent = percent(own.lookup_us, own.prefill_us + own.decode_us);
  }
}

// ---- the rest of the page

form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("end").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && event.ctrlKey) form.requestSubmit();
});

const theme = byId("theme");
const setTheme = (value) => {
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
};
theme.value = localStorage.getItem("theme") ?? "";
setTheme(theme.value);
theme.addEventListener("change", () => {
  localStorage.setItem("theme", theme.value);
  setTheme(theme.value);
});

findModel();
