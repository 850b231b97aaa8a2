// Opens a report in headless Chromium and prints what happened, as JSON:
//     node drive.js PAGE VIEW [SCREENSHOT]        VIEW: desktop, phone, or dark
// Every control is used, in every section; requests, console errors and axe's findings are counted.
// NODE_PATH names the folder that has puppeteer-core and axe-core; CHROMIUM the browser.
"use strict";
const fs = require("fs");
const puppeteer = require("puppeteer-core");

const [, , page, view, screenshot] = process.argv;
const VIEWS = {
  desktop: { width: 1280, height: 900 },
  dark: { width: 1280, height: 900 },
  phone: { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
};

async function main() {
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
  });
  try {
    console.log(JSON.stringify(await look(await browser.newPage())));
  } finally {
    await browser.close();
  }
}

async function look(tab) {
  const seen = { requests: [], errors: [] };
  tab.on("console", (message) => {
    if (["error", "warn"].includes(message.type())) seen.errors.push(message.text());
  });
  tab.on("pageerror", (error) => seen.errors.push(error.message));
  tab.on("request", (request) => {
    if (request.url() !== "file://" + page && !request.url().startsWith("data:")) seen.requests.push(request.url());
  });
  await tab.setViewport(VIEWS[view]);
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: view === "dark" ? "dark" : "light" }]);
  await tab.goto("file://" + page, { waitUntil: "load", timeout: 60000 });
  const painted = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  await tab.waitForFunction(painted);
  seen.paint = await tab.evaluate(painted);
  seen.width = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await new Promise((done) => setTimeout(done, 200)); // the last queries are drawn after the first
  seen.text = await tab.evaluate(() => document.getElementById("gallery-tool")?.innerText ?? "");
  seen.counts = await tab.evaluate(countQueries);
  seen.axe = await violations(tab);
  seen.used = await tab.evaluate(useEverything);
  seen.axe.push(...(await violations(tab)));
  if (screenshot) await tab.screenshot({ path: screenshot });
  return seen;
}

async function violations(tab) {
  await tab.evaluate(fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const found = await tab.evaluate(() => axe.run());
  return found.violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.target.join(" ")).slice(0, 3)}`);
}

/** Runs in the page. Returns the number of queries for each choice, and those of wins and losses. */
function countQueries() {
  const counts = {};
  const [method, answers] = document.querySelectorAll("#gallery-tool select");
  const result = document.querySelector("#gallery-tool .result");
  for (const one of [...method.options]) {
    for (const other of [...answers.options]) {
      for (const [control, option] of [[method, one], [answers, other]]) {
        control.value = option.value;
        control.dispatchEvent(new Event("change"));
      }
      const found = result.textContent.match(/^([\d,]+) quer/);
      counts[`${one.textContent}: ${other.value}`] = found ? Number(found[1].replace(",", "")) : 0;
    }
  }
  answers.value = "any";
  answers.dispatchEvent(new Event("change"));
  counts.cells = [...document.querySelectorAll(".cell strong")].map((each) => Number(each.textContent));
  return counts;
}

/** Runs in the page. Returns milliseconds for each control, up to the frame that shows the result. */
async function useEverything() {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const times = {};
  const timed = async (name, action) => {
    const begin = performance.now();
    action();
    document.body.offsetHeight; // lays the page out
    times[name] = Math.max(times[name] ?? 0, performance.now() - begin);
    await frame();
  };
  const change = (control, value, kind = "change") => {
    control.value = value;
    control.dispatchEvent(new Event(kind, { bubbles: true }));
  };
  for (const each of document.querySelectorAll("summary")) await timed("unfold", () => each.click());
  for (const tool of document.querySelectorAll(".needs-script")) {
    for (const control of tool.querySelectorAll("select")) {
      const name = `${tool.id}: ${control.parentElement.firstChild.textContent}`;
      const first = control.value;
      for (const option of [...control.options].slice(0, 8)) await timed(name, () => change(control, option.value));
      await timed(name, () => change(control, first));
    }
    for (const box of tool.querySelectorAll("input[type=checkbox]")) await timed("questions", () => box.click());
    for (const field of tool.querySelectorAll("input[type=search]")) {
      await timed("first letter", () => change(field, "n", "input"));
      for (const text of ["no", "nothing has this", ""]) await timed("search", () => change(field, text, "input"));
    }
  }
  const buttons = () => [...document.querySelectorAll("#gallery-tool button:enabled")];
  for (const each of buttons().slice(0, 10)) if (each.isConnected) await timed("button", () => each.click());
  for (let place = 0; place < 4; place += 1) {
    const cell = document.querySelectorAll(".cell")[place];
    if (cell && !cell.disabled) await timed("cell", () => cell.click());
  }
  const again = buttons().find((each) => each.textContent.includes("all again"));
  if (again) await timed("show all again", () => again.click());
  return times;
}

main();
