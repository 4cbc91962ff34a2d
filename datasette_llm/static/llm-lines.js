// Posts a form whose response is lines of JSON, and reads each when it is there.

// With XMLHttpRequest, whose "load" event means that the response is complete: to leave the page
// earlier would cancel what the server does.
export function postForLines(address, fields, signal, onLine) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    let seen = 0;
    const readLines = () => {
      const text = request.responseText;
      for (let end; (end = text.indexOf("\n", seen)) >= 0; seen = end + 1) {
        onLine(JSON.parse(text.slice(seen, end)));
      }
    };
    const isProgress = () => (request.getResponseHeader("content-type") || "").includes("ndjson");
    request.open("POST", address);
    request.setRequestHeader("accept", "application/x-ndjson");
    request.onprogress = () => { if (isProgress()) readLines(); };
    request.onload = () => {
      if (isProgress()) {
        readLines();
        resolve();
      } else {
        reject(new Error(`the server answered with status ${request.status}`));
      }
    };
    request.onerror = () => reject(new Error("the connection was lost"));
    request.onabort = () => reject(new Error("cancelled"));
    signal.addEventListener("abort", () => request.abort());
    request.send(new URLSearchParams(fields));
  });
}
