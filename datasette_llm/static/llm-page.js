// For every page: the reader's local time beside each time in UTC, the focus after an action, and the
// navigation's current page in view where the list is longer than the screen is wide.

const format = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  timeZoneName: "short",
});
const formatWithDay = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  timeZoneName: "short",
});

/** Write the local time after each `<time>` of an element that has none yet. */
export function addLocalTimes(element) {
  for (const time of element.querySelectorAll("time[datetime*='T']:not([data-local])")) {
    const moment = new Date(time.dateTime);
    time.dataset.local = "";
    if (Number.isNaN(moment.getTime()) || moment.getTimezoneOffset() === 0) continue;
    const sameDay = moment.getDate() === moment.getUTCDate();
    const local = document.createElement("small");
    local.className = "llm-local";
    local.textContent = (sameDay ? format : formatWithDay).format(moment);
    time.after(" ", local);
  }
}

/** After an action, have the focus at what says how it went. */
function focusOutcome() {
  const refused = document.getElementById("llm-refused");
  const said = refused ?? document.querySelector("p:is(.message-info, .message-warning, .message-error)");
  if (!said || (location.hash && !refused)) return;
  said.tabIndex = -1;
  said.focus();
}

focusOutcome();
addLocalTimes(document);
document.querySelector(".llm-tabs [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
