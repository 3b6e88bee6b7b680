"use strict";
(() => {
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 44rem)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const figures = new Map(Array.from(document.querySelectorAll(".plot"), (plot) => (
    [plot, JSON.parse(plot.previousElementSibling.textContent)])));

  // Plotly keeps in these objects what a reader hides, chooses or zooms to.
  function draw(plot, paper) {
    if (!plot.checkVisibility()) return; // in a closed part of the page, which opens later
    const { data, layout, frames } = figures.get(plot);
    const { panels, columns, height: row, legend } = layout.meta;
    const across = paper || !phone.matches ? Math.min(columns, panels) : 1;
    const rows = Math.ceil(panels / across);
    const height = rows * row + (20 * legend) / (phone.matches ? 1 : 3);
    Object.assign(layout, {
      template: templates[dark.matches && !paper ? "dark" : "light"],
      // Above the first row, its titles.
      grid: {
        rows, columns: across, pattern: "independent", ygap: 0.4,
        domain: { y: [0, 1 - 50 / height] },
      },
      height,
      width: paper ? 680 : undefined,
      dragmode: touch ? false : "zoom", // a finger scrolls the page
    });
    const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover" };
    Plotly.react(plot, { data, layout, frames, config });
  }
  const drawAll = (paper) => figures.forEach((_, plot) => draw(plot, paper));
  drawAll(false);
  for (const query of [dark, phone]) query.addEventListener("change", () => drawAll(false));
  addEventListener("beforeprint", () => drawAll(true));
  addEventListener("afterprint", () => drawAll(false));
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => (
      details.querySelectorAll(".plot").forEach((plot) => draw(plot, false))));
  }

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const down = heading.getAttribute("aria-sort") === "ascending";
      const body = heading.closest("table").tBodies[0];
      const value = (row) => row.cells[heading.cellIndex].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!x || !y) return !x - !y; // nothing measured: last, either way
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return down ? -order : order;
      });
      for (const each of heading.parentElement.cells) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  }
})();
