// The rating app works without this file. With it: drafts are saved as they are entered, a submission is
// retried with the same key until the server has it, number keys choose a score, time in focus is counted.
"use strict";

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const backoff = (tries) => Math.min(1000 * 2 ** tries, 15000);

function post(url, fields, keepalive) {
  const signal = AbortSignal.timeout(10000); // a server that hangs is asked again, with the same key
  return fetch(url, { method: "POST", body: fields, keepalive, signal, headers: { Accept: "application/json" } });
}

function rating(form) {
  const state = document.getElementById("state");
  const field = (name) => form.elements.namedItem(name);
  const pendingKey = `cogumi:${form.dataset.draft}`;
  const seen = { ms: Number(field("focus_ms").value) || 0, since: null };
  let dirty = false, saving = null, pending = null, stopped = false, timer = 0, tries = 0;
  let sequence = Number(form.dataset.sequence) || 0;

  function tell(name, detail) {
    state.dataset.state = name;
    const text = detail || form.dataset[name];
    if (state.textContent !== text) state.textContent = text;
  }

  function focusTime() {
    const now = performance.now();
    if (seen.since !== null) seen.ms += now - seen.since;
    seen.since = document.visibilityState === "visible" && document.hasFocus() ? now : null;
    field("focus_ms").value = Math.round(seen.ms);
  }

  function entered() {
    focusTime();
    const fields = new URLSearchParams(new FormData(form));
    sequence = Math.max(sequence + 1, Date.now());
    fields.set("client_seq", sequence);
    return fields;
  }

  async function save(keepalive = false) {
    if (!dirty || pending || stopped) return;
    dirty = false;
    tell("saving");
    try {
      const answer = await post(form.dataset.draft, entered(), keepalive);
      if (answer.ok) {
        tries = 0;
        const stored = await answer.json();
        if (!pending) tell(stored.saved ? (dirty ? "saving" : "saved") : "elsewhere");
      } else if (answer.status >= 500 || answer.status === 429) {
        throw new Error(answer.status);
      } else {
        stopped = true;
        tell("refused");
      }
    } catch {
      dirty = true;
      if (!pending) tell("retrying");
      schedule(backoff(tries++));
    }
  }

  function saveNow(keepalive) {
    clearTimeout(timer);
    saving = (saving || Promise.resolve()).then(() => save(keepalive));
    return saving;
  }

  function schedule(ms) {
    clearTimeout(timer);
    timer = setTimeout(saveNow, ms);
  }

  function changed() {
    dirty = true;
    if (state.dataset.state !== "retrying") tell("saving");
    schedule(tries ? backoff(tries) : 400);
  }

  function lock(on) {
    form.classList.toggle("sending", on);
    form.setAttribute("aria-busy", String(on));
    for (const control of form.querySelectorAll("fieldset, textarea, button, input:not([type=hidden])")) control.disabled = on;
  }

  async function submit(fields, again = false) {
    pending = fields;
    clearTimeout(timer);
    lock(true);
    tell("sending");
    sessionStorage.setItem(pendingKey, fields.toString());
    await saving; // a draft on its way must not arrive after the rating
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await post(form.getAttribute("action"), fields);
        if (answer.ok) {
          sessionStorage.removeItem(pendingKey);
          location.assign((await answer.json()).next);
          return;
        }
        if (answer.status < 500 && answer.status !== 429) {
          sessionStorage.removeItem(pendingKey);
          lock(false);
          pending = null;
          if (again) location.reload(); // what an earlier page had left to send is refused: show what is stored
          else if (answer.status === 422) tell("invalid", (await answer.json()).detail);
          else form.submit(); // the server's own page says what is stored and why this one was refused
          return;
        }
      } catch {
        // No answer: whether it was stored is unknown, and the same key makes asking again harmless.
      }
      tell("unsent");
      await wait(backoff(attempt));
    }
  }

  function keys(event) {
    const typing = event.target.closest("textarea, select, input:not([type=radio]):not([type=checkbox])");
    if (event.key === "Enter" && event.ctrlKey && typing) return form.requestSubmit();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || pending) return undefined;
    const resting = !event.target.closest("a, button, input, summary");
    if (event.key === "Enter" && resting) return form.requestSubmit();
    const turn = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
    if (turn && resting && !event.target.closest(".text")) {
      const back = (turn === "left") === (document.documentElement.dir !== "rtl");
      document.querySelector(back ? "a[rel=prev]" : "a[rel=next]")?.click();
    }
    if (!shortcuts.checked || !/^[0-9]$/.test(event.key)) return undefined;
    const choice = form.querySelector(`input[type=radio][data-key="${event.key}"]`);
    if (choice) {
      choice.focus();
      if (!choice.checked) choice.click();
    }
    return undefined;
  }

  const shortcuts = document.getElementById("shortcuts");
  shortcuts.closest("details").hidden = false;
  shortcuts.checked = localStorage.getItem("cogumi:shortcuts") !== "off";
  shortcuts.addEventListener("change", () => localStorage.setItem("cogumi:shortcuts", shortcuts.checked ? "on" : "off"));
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    focusTime();
    if (!pending) submit(new URLSearchParams(new FormData(form)));
  });
  for (const name of ["focus", "blur"]) window.addEventListener(name, focusTime);
  document.addEventListener("visibilitychange", focusTime);
  document.addEventListener("keydown", keys);
  window.addEventListener("pagehide", () => saveNow(true));
  document.addEventListener("submit", async (event) => {
    if (event.target === form || !dirty) return;
    event.preventDefault();
    await saveNow(); // another button of the page, such as the language: what was entered goes first
    dirty = false;
    event.target.requestSubmit(event.submitter);
  });
  focusTime();
  const unsent = sessionStorage.getItem(pendingKey);
  if (unsent) submit(new URLSearchParams(unsent), true);
}

function progress(admin) {
  const on = document.getElementById("refresh");
  on.closest("p").hidden = false;
  setInterval(async () => {
    if (!on.checked || document.visibilityState !== "visible") return;
    try {
      const answer = await fetch("/admin", { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("progress");
      if (fresh) document.getElementById("progress").replaceChildren(...fresh.childNodes);
    } catch {
      // The next turn asks again; the page says when its figures were made.
    }
  }, Number(admin.dataset.seconds) * 1000);
}

const form = document.querySelector("form[data-draft]");
if (form) rating(form);
const admin = document.querySelector("main[data-seconds]");
if (admin) progress(admin);
