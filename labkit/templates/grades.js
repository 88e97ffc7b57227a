"use strict";
// Sorts by a column's button and filters by text, verdict, route and shared outputs. Without it the table is complete.
(() => {
  const table = document.getElementById("grades");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const count = document.getElementById("count");
  const text = document.getElementById("text");
  const verdict = document.getElementById("verdict");
  const route = document.getElementById("route");
  const shared = document.getElementById("shared");
  document.getElementById("controls").hidden = false;

  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const keep = (!wanted || row.textContent.toLowerCase().includes(wanted))
        && (!verdict.value || row.dataset.verdict === verdict.value)
        && (!route.value || row.dataset.route === route.value)
        && (!shared.checked || row.dataset.shared === "1");
      row.hidden = !keep;
      shown += keep ? 1 : 0;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };

  const compare = (column, numeric) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].dataset.sort);
    if (x === "" || y === "") return (x === "") - (y === "");
    return numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
  };

  const sort = (header) => {
    const falling = header.getAttribute("aria-sort") === "ascending";
    const order = compare(header.cellIndex, header.dataset.numeric === "1");
    rows.sort((a, b) => {
      const found = order(a, b);
      const blank = a.cells[header.cellIndex].dataset.sort === "" || b.cells[header.cellIndex].dataset.sort === "";
      return falling && !blank ? -found : found;
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.append(...rows);
  };

  for (const header of table.tHead.rows[0].cells) {
    const button = header.querySelector("button");
    if (button) button.addEventListener("click", () => sort(header));
  }
  let waiting = 0;
  text.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
  for (const control of [verdict, route, shared]) control.addEventListener("change", filter);
  filter();
})();
