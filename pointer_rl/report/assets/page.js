"use strict";
(() => {
  // The page's data. Text from files is only ever set as text: nothing here parses HTML.
  const read = (id) => JSON.parse(document.getElementById(`json-${id}`).textContent);
  const once = (make) => {
    let made;
    return () => (made ??= make());
  };
  const page = read("page");
  const images = read("images");
  const thumbnails = once(() => read("thumbnails"));
  const pairs = once(() => read("pairs"));
  const queries = page.files.map((_, number) => once(() => read(`queries-${number}`)));

  // Places in a query and in a candidate; see pointer_rl/report/gallery.py.
  const ID = 0, QUESTION = 1, ANNOTATORS = 2, CANDIDATES = 4;
  const METHODS = 0, ROWS = 1, STATE = 2, ACCURACY = 3, ANSWER = 4, RAW = 5, FURTHER = 6;
  const WRONG = 0, RIGHT = 1, FAILED = 2;
  const STATES = [["wrong", "✗"], ["right", "✓"], ["failed", "!"], ["not judged", "–"]];
  const PER_PAGE = 10, AT_ONCE = 3, TRIALS_SHOWN = 4, LONG = 280, BRIEF = 80;

  // --- building elements ---

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value != null) made.setAttribute(key, value);
    }
    made.append(...children.filter((each) => each != null && each !== ""));
    return made;
  }
  const foreign = (text) => element("bdi", { dir: "auto" }, text);
  const number = (value) => value.toLocaleString("en-US");
  const counted = (count, one, many = one + "s") => `${number(count)} ${count === 1 ? one : many}`;

  function image(place, description, css) {
    if (place == null) {
      return element("span", { class: `${css} none`, role: "img", "aria-label": "no image" });
    }
    const made = element("img", { class: css, alt: description, loading: "lazy", decoding: "async" });
    made.src = "data:image/webp;base64," + thumbnails()[place];
    return made;
  }

  /** Text that is cut where it is long, with a button that shows the rest. */
  function long(text, most = LONG) {
    if (text.length <= most) return foreign(text);
    const shown = foreign(text.slice(0, most) + "…");
    const button = element("button", {
      type: "button", class: "quiet",
      onclick: () => { shown.textContent = text; button.remove(); },
    }, `show all ${number(text.length)} characters`);
    return element("span", {}, shown, " ", button);
  }

  function select(label, options, onchange) {
    const control = element("select", { onchange });
    for (const [value, name] of options) control.append(element("option", { value }, name));
    return [control, element("label", { class: "control" }, element("span", {}, label), control)];
  }

  function fill(control, options, value) {
    control.replaceChildren(...options.map(([each, name]) => element("option", { value: each }, name)));
    control.value = value;
  }

  // --- demonstrations ---

  const pool = (file) => (file.dataset == null ? {} : page.pools[file.dataset]);

  function demonstration(file, row) {
    const known = pool(file)[row];
    if (!known) return element("li", { class: "demonstration" }, element("span", { class: "row" }, `row ${row}`));
    const [id, question, answer] = known, place = images.rows[file.dataset][row];
    return element("li", { class: "demonstration", title: `row ${row} (${id}): ${question.slice(0, LONG)}` },
      image(place, "", "small"),
      element("span", { class: "said" },
        element("span", { class: "asked" }, long(question, BRIEF)),
        long(answer, BRIEF),
        element("span", { class: "row" }, `row ${row}`)));
  }

  for (const place of document.querySelectorAll(".thumb")) {
    const shown = (images.rows[place.dataset.dataset] || {})[place.dataset.row];
    if (shown != null) place.append(image(shown, "", "small"));
  }

  // --- the gallery ---

  const gallery = document.getElementById("gallery-tool") && makeGallery();

  function makeGallery() {
    const state = { file: 0, method: -1, answers: "any", text: "", sort: "file", page: 0, pair: null };
    let found = [], haystacks = [], flat = null, drawn = 0;

    const update = (change) => { Object.assign(state, { page: 0 }, change); refresh(); };
    const [fileControl, fileLabel] = select("File", page.files.map((each, n) => [n, each.name]),
      () => open(Number(fileControl.value)));
    const [methodControl, methodLabel] = select("Method", [],
      () => update({ method: Number(methodControl.value), pair: null }));
    const [answersControl, answersLabel] = select("Answers", [
      ["any", "any"], ["right", "a right one"], ["wrong", "a wrong one"],
      ["failed", "a failed trial"], ["flipped", "flipped: right and wrong"],
    ], () => update({ answers: answersControl.value }));
    const [sortControl, sortLabel] = select("Order", [
      ["file", "as in the file"], ["low", "lowest accuracy first"], ["high", "highest accuracy first"],
      ["divided", "most divided first"], ["question", "question, A to Z"],
    ], () => update({ sort: sortControl.value }));
    const searchControl = element("input", {
      type: "search", autocomplete: "off", spellcheck: "false",
      oninput: () => update({ text: searchControl.value.trim().toLowerCase() }),
    });
    const questionsControl = element("input", {
      type: "checkbox",
      onchange: () => list.classList.toggle("with-questions", questionsControl.checked),
    });
    const result = element("p", { class: "result", role: "status", tabindex: "-1" });
    const chosen = element("p", { class: "chosen" });
    const list = element("div", { class: "queries" });
    const pager = element("nav", { class: "pager", "aria-label": "Pages of queries" });
    document.getElementById("gallery-tool").append(
      element("form", { class: "controls", role: "search", "aria-label": "Filter queries", onsubmit: (e) => e.preventDefault() },
        page.files.length > 1 ? fileLabel : "", methodLabel, answersLabel, sortLabel,
        element("label", { class: "control wide-control" }, element("span", {}, "Search questions, answers and ids"), searchControl),
        element("label", { class: "check" }, questionsControl, " demonstrations' questions")),
      chosen, result, list, pager);

    function open(place) {
      choose(place);
      refresh();
      setTimeout(() => { if (state.file === place) queries[place]().forEach(haystack); }, 300);
    }

    /** Choose a file, and the method to look at first. */
    function choose(place) {
      const file = page.files[place];
      const highlight = file.methods.indexOf(file.highlight);
      if (state.file !== place) {
        haystacks = [];
        flat = null;
      }
      Object.assign(state, { file: place, method: highlight, page: 0, pair: null });
      fileControl.value = place;
      methodLabel.firstChild.textContent = file.kind === "evaluation" ? "Arm" : "Method";
      fill(methodControl, [[-1, "all"], ...file.methods.map((name, n) => [n, name])], highlight);
    }

    const haystack = (query, place) => (haystacks[place] ??= [
      query[ID], query[QUESTION], ...query[ANNOTATORS].map((each) => each[0]),
      ...new Set(query[CANDIDATES].map((each) => each[ANSWER])),
    ].join("\n").toLowerCase());

    /** States and accuracies of all candidates of a file, and their methods, in flat arrays. */
    function flatten(all) {
      const starts = [0], states = [], accuracies = [], methodStarts = [0], methods = [];
      for (const query of all) {
        for (const candidate of query[CANDIDATES]) {
          states.push(candidate[STATE]);
          accuracies.push(candidate[ACCURACY]);
          for (const method of candidate[METHODS]) methods.push(method);
          methodStarts.push(methods.length);
        }
        starts.push(states.length);
      }
      return {
        starts: Uint32Array.from(starts), states: Uint8Array.from(states),
        accuracies: Float32Array.from(accuracies), methodStarts: Uint32Array.from(methodStarts),
        methods: Uint16Array.from(methods),
      };
    }

    /** Which methods' candidates are shown: by number, 1 if they are. */
    function wantedMethods() {
      const wanted = new Uint8Array(page.files[state.file].methods.length);
      for (const each of state.pair ? state.pair.methods : [state.method]) {
        if (each >= 0) wanted[each] = 1;
      }
      return wanted;
    }

    const every = () => !state.pair && state.method < 0;
    const shown = (query, wanted) => (every() ? query[CANDIDATES]
      : query[CANDIDATES].filter((each) => each[METHODS].some((one) => wanted[one])));

    function passes(counts) {
      switch (state.answers) {
        case "right": return counts[RIGHT] > 0;
        case "wrong": return counts[WRONG] > 0;
        case "failed": return counts[FAILED] > 0;
        case "flipped": return counts[RIGHT] > 0 && counts[WRONG] > 0;
        default: return true;
      }
    }

    function filter() {
      const all = queries[state.file](), wanted = wantedMethods(), anything = every();
      const { starts, states, accuracies, methodStarts, methods } = (flat ??= flatten(all));
      const counts = new Uint32Array(STATES.length);
      found = [];
      for (let place = 0; place < all.length; place += 1) {
        if (state.pair && !state.pair.ids.has(all[place][ID])) continue;
        if (state.text && !haystack(all[place], place).includes(state.text)) continue;
        counts.fill(0);
        let total = 0, number = 0;
        for (let one = starts[place]; one < starts[place + 1]; one += 1) {
          let counted = anything;
          for (let each = methodStarts[one]; !counted && each < methodStarts[one + 1]; each += 1) {
            counted = wanted[methods[each]] === 1;
          }
          if (!counted) continue;
          number += 1;
          counts[states[one]] += 1;
          if (states[one] < FAILED) total += accuracies[one];
        }
        const judged = counts[RIGHT] + counts[WRONG];
        if ((number || state.pair || anything) && passes(counts)) {
          found.push({ query: all[place], mean: judged ? total / judged : NaN });
        }
      }
      const mean = (each, missing) => (Number.isNaN(each.mean) ? missing : each.mean);
      const question = (each) => each.query[QUESTION];
      const orders = {
        low: (a, b) => mean(a, 2) - mean(b, 2),
        high: (a, b) => mean(b, -1) - mean(a, -1),
        divided: (a, b) => Math.abs(mean(a, 9) - 0.5) - Math.abs(mean(b, 9) - 0.5),
        question: (a, b) => (question(a) < question(b) ? -1 : question(a) > question(b) ? 1 : 0),
      };
      if (state.sort in orders) found.sort(orders[state.sort]);
    }

    function refresh() {
      filter();
      draw();
    }

    function draw() {
      const file = page.files[state.file];
      const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
      state.page = Math.min(state.page, pages - 1);
      const first = state.page * PER_PAGE, some = found.slice(first, first + PER_PAGE);
      const all = queries[state.file]().length;
      result.textContent = found.length
        ? `${counted(found.length, "query", "queries")} of ${number(all)}` +
          (pages > 1 ? `; ${number(first + 1)} to ${number(first + some.length)} below` : "")
        : `None of ${counted(all, "query", "queries")} passes these filters.`;
      chosen.replaceChildren(...(state.pair
        ? [state.pair.words, " ", element("button", { type: "button", class: "quiet", onclick: () => update({ pair: null }) }, "show all again")]
        : []));
      // The first ones at once, the others after they are painted.
      const wanted = wantedMethods(), current = (drawn += 1);
      const cards = (part) => part.map(({ query }) => card(file, query, shown(query, wanted)));
      list.replaceChildren(...cards(some.slice(0, AT_ONCE)));
      setTimeout(() => { if (current === drawn) list.append(...cards(some.slice(AT_ONCE))); });
      const turn = (by, name) => element("button", {
        type: "button", disabled: state.page + by < 0 || state.page + by >= pages,
        onclick: () => { state.page += by; draw(); result.focus({ preventScroll: true }); result.scrollIntoView(); },
      }, name);
      pager.replaceChildren(...(pages > 1
        ? [turn(-1, "Previous"), element("span", {}, `page ${number(state.page + 1)} of ${number(pages)}`), turn(1, "Next")]
        : []));
    }

    function card(file, query, candidates) {
      const counts = STATES.map((_, n) => candidates.filter((each) => each[STATE] === n).length);
      const judged = counts.map((count, n) => (count ? `${number(count)} ${STATES[n][0]}` : "")).filter(Boolean).join(", ");
      const what = file.kind === "beams" ? counted(candidates.length, "beam") : judged;
      const trials = element("ol", { class: "trials" });
      const show = (some) => trials.append(...some.map((each) => trial(file, each)));
      show(candidates.slice(0, TRIALS_SHOWN));
      const rest = candidates.slice(TRIALS_SHOWN);
      const more = rest.length > 0 && element("button", {
        type: "button", class: "quiet", onclick: () => { show(rest); more.remove(); },
      }, `show ${number(rest.length)} more`);
      const asked = query[ANNOTATORS];
      return element("article", { class: "query" },
        image(images.queries[state.file][query[ID]], "image of the query", "large"),
        element("div", {},
          element("h3", {}, query[QUESTION] ? long(query[QUESTION]) : `query ${query[ID]}`),
          asked.length ? element("p", {}, element("span", { class: "key" }, "annotators "),
            ...asked.flatMap(([answer, times], n) => [n ? ", " : "", long(answer), times > 1 ? ` ×${times}` : ""])) : "",
          element("p", { class: "key" }, "query ", foreign(query[ID]), candidates.length > 1 ? ` · ${what}` : "")),
        trials, more || "");
    }

    function trial(file, candidate) {
      const [name, sign] = STATES[candidate[STATE]];
      const beams = file.kind === "beams";
      const further = Object.entries(candidate[FURTHER]).map(([key, value]) => ` · ${key} ${value}`);
      const failed = candidate[STATE] === FAILED, judged = candidate[STATE] < FAILED;
      const raw = candidate[RAW];
      return element("li", { class: `trial ${name.replace(" ", "-")}` },
        beams ? "" : element("p", { class: "state" }, element("span", { "aria-hidden": "true" }, sign), ` ${name}`,
          judged && candidate[ACCURACY] > 0 && candidate[ACCURACY] < 1 ? ` ${candidate[ACCURACY]}` : ""),
        candidate[ROWS].length
          ? element("ol", { class: "demonstrations", "aria-label": "demonstrations in order" }, ...candidate[ROWS].map((row) => demonstration(file, row)))
          : element("p", { class: "demonstrations key" }, "no demonstrations"),
        beams ? "" : element("div", { class: "answer" },
          element("p", {}, element("span", { class: "key" }, failed ? "reason " : "answer "), long(candidate[ANSWER])),
          raw === 0 ? "" : element("p", { class: "raw" }, element("span", { class: "key" }, "generated "), long(raw))),
        element("p", { class: "by key" }, candidate[METHODS].map((one) => file.methods[one]).join("; "), ...further));
    }

    open(Math.max(0, page.files.findIndex((each) => each.kind === "evaluation")));
    return {
      has: (name) => page.files.some((each) => each.name === name),
      /** Show the queries of a file that have these ids. */
      show(name, words, ids, arms) {
        const place = page.files.findIndex((each) => each.name === name);
        choose(place);
        const methods = arms.map((arm) => page.files[place].methods.indexOf(arm));
        methodControl.value = -1;
        answersControl.value = "any";
        searchControl.value = "";
        const kept = queries[place]().filter((each) => ids.has(each[ID])).length;
        const missing = ids.size - kept;
        update({
          method: -1, answers: "any", text: "",
          pair: { ids, methods, words: words + (missing ? ` (${number(missing)} of them are not in the sample)` : "") },
        });
        document.getElementById("gallery").scrollIntoView();
        result.focus({ preventScroll: true });
      },
    };
  }

  // --- wins and losses ---

  if (document.getElementById("pairs-tool")) makePairs();

  function makePairs() {
    const [fileControl, fileLabel] = select("File", pairs().map((each, n) => [n, each.name]), open);
    const [oneControl, oneLabel] = select("Arm", [], draw);
    const [otherControl, otherLabel] = select("against", [], draw);
    const summary = element("p", { class: "result", role: "status" });
    const cells = element("div", { class: "cells" });
    document.getElementById("pairs-tool").append(
      element("form", { class: "controls", "aria-label": "Arms to compare", onsubmit: (e) => e.preventDefault() },
        pairs().length > 1 ? fileLabel : "", oneLabel, otherLabel),
      cells, summary);
    open();

    function open() {
      const { arms, highlight } = pairs()[Number(fileControl.value)];
      const names = Object.keys(arms), options = names.map((name) => [name, name]);
      const one = names.includes(highlight) ? highlight : names[0];
      // What stands against it first is what its own shots are compared with: random, if it is there.
      const suffix = one.slice(one.indexOf(","));
      fill(oneControl, options, one);
      fill(otherControl, options, ["random" + suffix, ...names].find((name) => name in arms && name !== one));
      draw();
    }

    function draw() {
      const { name: file, ids, arms } = pairs()[Number(fileControl.value)];
      const one = oneControl.value, other = otherControl.value;
      const groups = [new Set(), new Set(), new Set(), new Set()];
      let total = 0, compared = 0;
      ids.forEach((id, place) => {
        const a = arms[one][place], b = arms[other][place];
        if (a == null || b == null) return;
        total += a - b;
        compared += 1;
        groups[a > b ? 0 : a < b ? 3 : a > 0 ? 1 : 2].add(id);
      });
      const names = [`${one} wins`, "the same, above 0", "the same, 0", `${other} wins`];
      cells.replaceChildren(...groups.map((group, n) => element("button", {
        type: "button", class: `cell cell-${n}`, disabled: !group.size || !gallery?.has(file),
        onclick: () => gallery.show(file, `${names[n]}: ${counted(group.size, "query", "queries")}`, group, [one, other]),
      }, element("strong", {}, number(group.size)), element("span", {}, names[n]))));
      const points = compared ? (100 * total / compared).toFixed(1) : "–";
      summary.textContent = `Over ${counted(compared, "query", "queries")}, ${one} is ${points.replace("-", "−")} points better than ${other} on average` +
        (compared < ids.length ? `; ${number(ids.length - compared)} are left out, where one of them has no accuracy.` : ".");
    }
  }

  // --- printing: what is folded is printed, too ---

  let folded = [];
  addEventListener("beforeprint", () => {
    for (const each of document.images) each.loading = "eager";
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
})();
