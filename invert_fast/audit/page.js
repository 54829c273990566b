// Headings sort their table, by mouse and by keyboard; aria-sort says which one does, and which way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? way : "none"));
    const said = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const order = (a, b) => {
      const [x, y] = [said(a), said(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not known stays last
      const sign = way === "ascending" ? 1 : -1;
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
