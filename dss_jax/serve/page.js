"use strict";
// Texts of the student, the teacher and the data are set as text (textContent), never as markup.
(() => {
  const BARS = 8; // Shown at first.
  const STARTERS = 3;
  const at = (id) => document.getElementById(id);
  let card = null;
  let asking = 0; // Number of the last question: an answer to an earlier one is not shown.

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const headers = () => {
    const token = at("token").value.trim();
    return token ? { Authorization: `Bearer ${token}` } : {};
  };

  // The JSON of an answer; throws an Error with the server's message.
  const call = async (path, body) => {
    const options = { headers: headers(), cache: "no-store" };
    if (body !== undefined) {
      options.method = "POST";
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("The server cannot be reached.");
    }
    let found = null;
    try {
      found = await answer.json();
    } catch { /* Told below. */ }
    if (answer.ok && found !== null) return found;
    const wait = answer.headers.get("Retry-After");
    const said = found && found.error ? found.error.message : `The server answered ${answer.status}.`;
    const error = new Error(answer.status === 429 && wait ? `Too many questions. Try again in ${wait} s.` : said);
    error.status = answer.status;
    throw error;
  };

  const say = (text) => { at("status").textContent = text; at("status").hidden = text === ""; };

  // Where the answer is below the form.
  const bringIntoView = () => {
    if (at("answer").getBoundingClientRect().top > 0.6 * window.innerHeight) at("answer").scrollIntoView();
  };

  const fail = (error) => {
    say("");
    at("result").hidden = at("starters").hidden = true;
    at("error").textContent = error.message;
    at("error").hidden = false;
    bringIntoView();
    if (error.status === 401) {
      at("token-field").hidden = false;
      at("card-link").hidden = true;
      at("token").focus();
    }
  };

  const readsRationale = () => card.form === "rationale_input";

  const lines = (text) => [...new Set(text.split("\n").map((line) => line.trim()).filter((line) => line))];

  const same = (one, other) => one.trim().toLowerCase() === other.trim().toLowerCase();

  // The test example that is asked about; null where the input is the user's own.
  const example = () => {
    const found = card.examples[Number(at("examples").value || NaN)];
    return found && found.input === at("input").value ? found : null;
  };

  const percent = (share) => share >= 0.9995 && share < 1 ? "> 99.9 %"
    : share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;

  const bar = (label, share, chosen, marks) => {
    const line = element("li", undefined, chosen ? "chosen" : "");
    const name = element("span", label, "name");
    for (const mark of marks) name.append(element("span", mark, "tag"));
    const track = element("span", undefined, "track");
    track.setAttribute("aria-hidden", "true");
    const fill = element("span", undefined, "fill");
    fill.style.width = `${100 * share}%`;
    track.append(fill);
    line.append(name, element("span", percent(share), "number"), track);
    return line;
  };

  const drawBars = (one, asked, count) => {
    const known = asked === null ? [] : [["gold", asked.label], ["teacher", asked.teacher_label]];
    const marks = (label) => known.filter(([, own]) => own && same(own, label)).map(([name]) => name);
    const sorted = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]);
    at("bars").replaceChildren(...sorted.slice(0, count).map(
      ([label, share]) => bar(label, share, label === one.label, marks(label))));
    at("bars").hidden = sorted.length === 0;
    at("more").hidden = sorted.length <= count;
    at("more").textContent = `Show all ${sorted.length} labels`;
    at("more").onclick = () => { drawBars(one, asked, sorted.length); at("label").focus(); };
  };

  // Of an answer beside the gold label. Other metrics than that of texts may take two for the same.
  const verdict = (name, label, gold) => {
    if (!label || !gold) return [];
    if (same(label, gold)) return [element("span", `✓ ${name} right`, "right")];
    if (card.metric === "text_accuracy") return [element("span", `✗ ${name} wrong`, "wrong")];
    return [element("span", `${name} differs from gold`)];
  };

  const show = (one, asked, milliseconds) => {
    at("label").textContent = one.label === "" ? "(nothing)" : one.label;
    at("verdict").replaceChildren(...(asked === null ? [] : [
      ...(asked.label ? [element("span", `gold: ${asked.label}`)] : []),
      ...verdict("student", one.label, asked.label),
      ...verdict("teacher", asked.teacher_label, asked.label),
    ]));
    drawBars(one, asked, BARS);
    at("student-voice").hidden = one.rationale === null;
    at("rationale").textContent = one.rationale === "" ? "(nothing)" : one.rationale;
    const taught = asked !== null && asked.rationale ? asked.rationale : "";
    at("teacher-voice").hidden = taught === "";
    at("teacher-rationale").textContent = taught;
    const free = one.probability === null ? "Any text may be the label. " : "";
    at("timing").textContent =
      `${free}Log-probability ${one.log_prob.toFixed(2)}. Answered in ${Math.round(milliseconds)} ms.`;
    at("error").hidden = at("starters").hidden = true;
    at("result").hidden = false;
    say("");
    bringIntoView();
  };

  const ask = async () => {
    if (card === null) {
      await open();
      if (card === null) return;
    }
    const number = ++asking;
    const read = at("reads").value.trim();
    const body = { input: at("input").value + (read && `</s>${read}`), explain: at("explain").checked };
    const labels = lines(at("labels").value);
    if (labels.length) body.labels = labels;
    const asked = example();
    at("answer").setAttribute("aria-busy", "true");
    at("ask").setAttribute("aria-disabled", "true");
    say("Asking …");
    const start = performance.now();
    try {
      const found = await call("v1/predict", body);
      if (number === asking) show(found.predictions[0], asked, performance.now() - start);
    } catch (error) {
      if (number === asking) fail(error);
    } finally {
      if (number === asking) {
        at("answer").setAttribute("aria-busy", "false");
        at("ask").setAttribute("aria-disabled", "false");
      }
    }
  };

  const pick = () => {
    const found = card.examples[Number(at("examples").value || NaN)];
    if (!found) return;
    at("input").value = found.input;
    at("reads").value = readsRationale() ? found.rationale : "";
    at("labels").value = (found.allowed_labels || []).join("\n");
    ask();
  };

  const describe = () => {
    document.title = `${card.id}: a student at work`;
    at("name").textContent = card.id;
    at("about").textContent = [card.task, card.description].filter((text) => text).join(": ");
    const facts = [card.method && `method ${card.method}`, `engine ${card.engine}`,
      card.labels.length ? `${card.labels.length} labels` : "", `dss-jax ${card.version}`];
    at("facts").replaceChildren(...facts.filter((text) => text).map((text) => element("li", text)));
    at("labels").placeholder = card.labels.join("\n");
    at("labels-note").textContent = card.labels.length ? "(empty: the task's)" : "(empty: any text)";
    at("reads-field").hidden = !readsRationale();
    at("explain").disabled = !card.explains;
    at("explain").checked = card.explains;
    at("explain").parentElement.title = card.explains ? "" : "This student was not trained to explain.";
    at("examples").replaceChildren(at("examples").options[0], ...card.examples.map((one, i) => {
      const option = element("option", `${i + 1}. ${one.input.slice(0, 90)}`);
      option.value = String(i);
      return option;
    }));
    const starters = card.examples.slice(0, STARTERS).map((one, i) => {
      const button = element("button", one.input);
      button.type = "button";
      button.addEventListener("click", () => { at("examples").value = String(i); pick(); });
      return button;
    });
    at("starters").replaceChildren(at("starters").firstElementChild, ...starters);
    at("examples-field").hidden = at("starters").hidden = card.examples.length === 0;
  };

  const waitUntilReady = async () => {
    for (;;) {
      const answer = await fetch("readyz", { cache: "no-store" }).catch(() => null);
      if (answer && answer.ok) break;
      if (asking === 0) say("The student warms up …");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    if (asking === 0) say(card.examples.length ? "" : "Type an input, and ask.");
  };

  const open = async () => {
    try {
      card = await call("v1/model");
    } catch (error) {
      fail(error);
      return;
    }
    at("error").hidden = true;
    describe();
    waitUntilReady();
  };

  at("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  at("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      at("form").requestSubmit();
    }
  });
  at("examples").addEventListener("change", pick);
  at("token").addEventListener("change", () => { if (card === null) open(); });
  at("input").addEventListener("input", () => { if (card && example() === null) at("examples").value = ""; });
  if (navigator.platform.startsWith("Mac")) at("keys").firstElementChild.textContent = "⌘";
  open();
})();
