"use strict";
// Everything that comes from the data is set as text (textContent), never as markup.
(() => {
  const PAGE = 20;
  const at = (id) => document.getElementById(id);
  const tasks = JSON.parse(at("data").textContent);
  const state = { task: 0, method: 0, show: "all", low: 0, high: 100, search: "", page: 0 };
  let found = [];

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const options = (select, names) => {
    select.replaceChildren(...names.map((name, i) => {
      const option = element("option", name);
      option.value = String(i);
      return option;
    }));
  };

  const isRight = (answer) => answer !== null && answer.correct;

  const FILTERS = {
    all: () => true,
    student: (item) => isRight(item.answers[state.method]) && item.teacher && !item.teacher.correct,
    teacher: (item) => item.teacher && item.teacher.correct && item.answers[state.method] !== null &&
      !isRight(item.answers[state.method]),
    mistakes: (item) => item.answers[state.method] && !isRight(item.answers[state.method]),
    argues: (item) => item.answers[state.method] && item.answers[state.method].names,
    differ: (item) => new Set(item.answers.filter((a) => a).map((a) => a.prediction)).size > 1,
    wrong: (item) => item.answers.some((a) => a) && !item.answers.some(isRight),
    right: (item) => item.answers.some((a) => a) && item.answers.every((a) => a === null || isRight(a)),
  };

  const isSure = (item) => {
    if (state.low === 0 && state.high === 100) return true;
    const answer = item.answers[state.method];
    const sure = answer ? 100 * answer.confidence : NaN;
    return sure >= state.low && sure <= state.high;
  };

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // Lower-case text of an item, made when it is first searched.
  const textOf = (item) => {
    if (item.text === undefined) {
      const parts = [item.id, item.input, item.gold];
      if (item.teacher) parts.push(item.teacher.label, item.teacher.rationale);
      for (const a of item.answers) if (a) parts.push(a.prediction, a.rationale || "");
      item.text = parts.join("\n").toLowerCase();
    }
    return item.text;
  };

  const answerLine = (list, name, label, right, notes, rationale, chosen, shares) => {
    list.append(element("dt", name, chosen ? "chosen" : ""));
    const line = element("dd");
    const mark = [right ? "✓ right" : "✗ wrong", ...notes].join(", ");
    line.append(element("span", label === "" ? "(nothing)" : label, chosen ? "chosen" : ""), " ",
      element("span", mark, right ? "right" : "wrong"));
    if (shares) {
      line.append(element("span", shares.map(([x, p]) => `${x} ${percent(p)}`).join(", "), "why"));
    }
    if (rationale) line.append(element("span", rationale, "why"));
    list.append(line);
  };

  const itemCard = (item) => {
    const task = tasks[state.task];
    const card = element("li");
    card.tabIndex = -1;
    card.append(element("p", item.input, "input"));
    const list = element("dl");
    list.append(element("dt", "gold"), element("dd", item.gold));
    if (item.teacher) {
      const t = item.teacher;
      answerLine(list, "teacher", t.label, t.correct, [], t.rationale, false);
    }
    item.answers.forEach((a, i) => {
      if (a === null) return;
      const method = task.methods[i];
      const notes = method.seeds > 1
        ? [`${Math.round(a.right * method.seeds)} of ${method.seeds} seeds`] : [];
      if (a.confidence !== undefined) notes.push(`${percent(a.confidence)} sure`);
      answerLine(list, method.name, a.prediction, isRight(a), notes, a.rationale,
        i === state.method, a.shares);
    });
    card.append(list, element("p", item.id, "id"));
    return card;
  };

  const keep = () => {
    const parts = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) parts.set(name, String(value));
    history.replaceState(null, "", `#${parts}`);
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const own = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    at("items").replaceChildren(...own.map(itemCard));
    at("count").textContent =
      `${found.length.toLocaleString("en")} of ${tasks[state.task].items.length.toLocaleString("en")} items`;
    at("page").textContent = `page ${state.page + 1} of ${pages}`;
    at("before").disabled = state.page === 0;
    at("after").disabled = state.page === pages - 1;
    keep();
  };

  const filter = () => {
    const words = state.search.toLowerCase();
    const wanted = FILTERS[state.show];
    found = tasks[state.task].items.filter(
      (item) => wanted(item) && isSure(item) && (words === "" || textOf(item).includes(words)));
    draw();
  };

  const turn = (by) => {
    state.page += by;
    draw();
    at("answers").scrollIntoView();
  };

  const step = (by) => {
    const cards = [...at("items").children];
    if (!cards.length) return;
    const now = cards.indexOf(document.activeElement);
    const next = now < 0 ? (by > 0 ? 0 : cards.length - 1) : now + by;
    cards[Math.min(Math.max(0, next), cards.length - 1)].focus();
  };

  const setTask = (number) => {
    state.task = number;
    const names = tasks[number].methods.map((m) => m.name);
    options(at("method"), names.length ? names : ["(no student)"]);
    state.method = Math.min(state.method, Math.max(0, names.length - 1));
    at("method").value = String(state.method);
    at("sure").hidden = !tasks[number].items.some(
      (item) => item.answers.some((a) => a && a.confidence !== undefined));
    if (at("sure").hidden) [state.low, state.high] = [0, 100];
    for (const name of ["low", "high"]) at(name).value = String(state[name]);
  };

  // A share in per cent; what is none is one of the ends.
  const bounded = (text, otherwise) => {
    const value = Number.parseFloat(text);
    return value >= 0 && value <= 100 ? value : otherwise;
  };

  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name, below) => {
      const value = Number.parseInt(given.get(name) || "0", 10);
      return value >= 0 && value < below ? value : 0;
    };
    state.low = bounded(given.get("low"), 0);
    state.high = bounded(given.get("high"), 100);
    setTask(number("task", tasks.length));
    state.method = number("method", Math.max(1, tasks[state.task].methods.length));
    state.show = Object.hasOwn(FILTERS, given.get("show") || "") ? given.get("show") : "all";
    state.search = given.get("search") || "";
    state.page = number("page", 1e6);
    at("task").value = String(state.task);
    at("method").value = String(state.method);
    at("show").value = state.show;
    at("search").value = state.search;
    filter();
  };

  if (!tasks.length) return;
  options(at("task"), tasks.map((t) => `${t.task} (${t.metric.replaceAll("_", " ")})`));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("task").addEventListener("change", (event) => {
    state.method = state.page = 0;
    setTask(Number(event.target.value));
    filter();
  });
  for (const name of ["method", "show"]) {
    at(name).addEventListener("change", (event) => {
      state[name] = name === "show" ? event.target.value : Number(event.target.value);
      state.page = 0;
      filter();
    });
  }
  for (const [name, otherwise] of [["low", 0], ["high", 100], ["search", null]]) {
    at(name).addEventListener("input", (event) => {
      const text = event.target.value;
      state[name] = otherwise === null ? text : bounded(text, otherwise);
      state.page = 0;
      filter();
    });
  }
  at("before").addEventListener("click", () => turn(-1));
  at("after").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const inField = event.target.closest("input, select");
    if (inField || event.ctrlKey || event.metaKey || event.altKey) {
      if (inField && event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      at("search").focus();
    } else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "n" && !at("after").disabled) turn(1);
    else if (event.key === "p" && !at("before").disabled) turn(-1);
  });
  window.addEventListener("hashchange", read);
  read();
})();
