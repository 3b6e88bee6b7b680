"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const coarse = matchMedia("(pointer: coarse)").matches;
  const plots = new Map(); // element -> () => ({data, layout}), as the page is now

  // --- Colors: `var(--x)` and `var(--x) 20%` are what the style sheet says at the moment.

  function color(text) {
    const found = /^var\((--[\w-]+)\)(?: (\d+)%)?$/.exec(text);
    if (!found) return text; // a name that looks like one
    const [, name, percent] = found;
    const value = getComputedStyle(root).getPropertyValue(name).trim();
    if (!percent) return value;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${percent / 100})`;
  }

  function themed(value) {
    if (typeof value === "string") return value.startsWith("var(") ? color(value) : value;
    if (Array.isArray(value)) {
      return typeof value[0] === "object" && value[0] !== null ? value.map(themed) : value;
    }
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
  }

  const axis = {
    automargin: true, gridcolor: "var(--grid)", linecolor: "var(--line)", zeroline: false,
    tickcolor: "var(--line)", tickfont: { color: "var(--muted)", size: 12 },
    title: { font: { color: "var(--muted)", size: 12 }, standoff: 8 },
  };
  const template = {
    layout: {
      font: { family: "system-ui, sans-serif", size: 13, color: "var(--text)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 44, r: 12, t: 10, b: 36 }, hovermode: "closest",
      dragmode: coarse ? false : "zoom",
      hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--line)", font: { color: "var(--text)" }, namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis, yaxis: axis,
      coloraxis: { colorbar: { outlinewidth: 0 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--muted)", activecolor: "var(--text)" },
    },
  };
  const settings = {
    responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    displayModeBar: coarse ? false : "hover",
  };

  function paint(element) {
    const { data: traces, layout } = plots.get(element)();
    const size = root.classList.contains("printing") // paper does not wait for a figure to fit itself
      ? { width: element.clientWidth, height: element.clientHeight }
      : { autosize: true };
    Plotly.react(element, themed(traces), themed({ ...layout, ...size, template }), settings);
  }
  const paintAll = () => plots.forEach((_, element) => paint(element));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      root.classList.toggle("printing", printing);
      paintAll();
    });
  }

  // --- Figures that stand in the page's data; a part's keys switch its groups on and off.

  for (const element of document.querySelectorAll("[data-figure]")) {
    const figure = data.figures[element.dataset.figure];
    const part = element.closest("[data-part]");
    const isOn = (group) => part.querySelector(`.key[data-group="${group}"]`)?.getAttribute("aria-pressed") !== "false";
    plots.set(element, () => ({
      layout: figure.layout,
      data: figure.traces.map((trace) => ({
        ...trace,
        visible: trace.meta === undefined || isOn(trace.meta.group),
      })),
    }));
  }
  for (const key of document.querySelectorAll(".key")) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") === "false");
      for (const element of key.closest("[data-part]").querySelectorAll("[data-figure]")) paint(element);
    });
  }

  // --- Gradient evolution: a run, a layer and an epoch are chosen; six figures follow.

  for (const part of document.querySelectorAll("[data-evolution]")) {
    const runs = data.evolutions[part.dataset.evolution];
    const [run, layer, epoch] = ["run", "layer", "epoch"].map((name) => part.querySelector(`[name=${name}]`));
    const [output, play, verdicts] = ["output", "button", ".verdicts"].map((name) => part.querySelector(name));
    const chosen = () => runs[run.value];
    const chosenLayer = () => chosen().layers[layer.value];
    const cursor = () => ({
      type: "line", xref: "x", yref: "paper", x0: chosen().frames[epoch.value], x1: chosen().frames[epoch.value],
      y0: 0, y1: 1, line: { color: "var(--muted)", width: 1.5, dash: "2px,2px" },
    });

    function heatmap(field) {
      const map = chosenLayer().maps[field];
      map.cells ??= Uint8Array.from(atob(map.bytes), (c) => c.charCodeAt(0));
      const [, rows, columns] = map.shape;
      const start = epoch.value * rows * columns;
      const scale = (map.largest ?? 0) / 255;
      const z = Array.from({ length: rows }, (_, i) =>
        Array.from(map.cells.subarray(start + i * columns, start + (i + 1) * columns), (v) => v * scale));
      return {
        data: [{
          type: "heatmap", z, zmin: 0, zmax: map.largest || 1, colorscale: "Cividis",
          hovertemplate: "row %{y}, column %{x}: %{z:.3g}<extra></extra>",
          colorbar: {
            orientation: "h", y: -0.06, yanchor: "top", thickness: 8, outlinewidth: 0, nticks: 4,
            tickformat: "~g", tickfont: { color: "var(--muted)", size: 12 },
          },
        }],
        layout: {
          margin: { l: 2, r: 2, t: 6, b: 46 },
          xaxis: { visible: false }, yaxis: { visible: false, autorange: "reversed" },
        },
      };
    }

    function norms() {
      const { epochs, norms: found } = chosen();
      const line = (y, name, index, dash) => ({
        type: "scatter", mode: "lines+markers", x: epochs, y, name,
        line: { color: `var(--series-${index})`, width: 2.25, dash },
        marker: { symbol: ["circle", "square", "triangle-up"][index], size: 7, maxdisplayed: 8 },
      });
      const gaps = { x: [], y: [] }; // the dissolving norm, between the two sums
      const every = Math.ceil(epochs.length / 25);
      epochs.forEach((at, i) => {
        if (i % every && i < epochs.length - 1) return;
        gaps.x.push(at, at, null);
        gaps.y.push(found.accumulated[i], found.summed[i], null);
      });
      return {
        data: [
          { type: "scatter", mode: "lines", ...gaps, name: "dissolving", hoverinfo: "skip",
            line: { color: "var(--muted)", width: 1.25, dash: "3px,3px" } },
          line(found.summed, "sum of |G|", 1, "8px,3px"),
          line(found.accumulated, "|A|", 2, "2px,3px"),
          line(found.gradient, "|G|", 0, "solid"),
        ],
        layout: {
          shapes: [cursor()], legend: { traceorder: "reversed" }, margin: { t: 44 },
          xaxis: { title: { text: "epoch" } }, yaxis: { rangemode: "tozero" },
        },
      };
    }

    function highest(field) {
      const lines = chosen().layers.map((each, i) => {
        const on = i === Number(layer.value);
        return {
          type: "scatter", mode: on ? "lines+markers" : "lines", x: chosen().epochs, y: each.highest[field],
          name: each.name, hovertemplate: "%{y:.3g}", opacity: on ? 1 : 0.55,
          line: { color: on ? "var(--series-0)" : "var(--muted)", width: on ? 2.75 : 1.25 },
          marker: { size: 7, maxdisplayed: 8 },
        };
      });
      lines.push(...lines.splice(Number(layer.value), 1)); // above the others
      return {
        data: lines,
        layout: {
          shapes: [cursor()], showlegend: false,
          xaxis: { title: { text: "epoch" } }, yaxis: { rangemode: "tozero" },
        },
      };
    }

    const find = (name) => part.querySelector(`[data-plot=${name}]`);
    const maps = ["gradient", "dissolving", "accumulated"];
    for (const field of maps) plots.set(find(field), () => heatmap(field));
    plots.set(find("norms"), norms);
    plots.set(find("highest-gradient"), () => highest("gradient"));
    plots.set(find("highest-accumulated"), () => highest("accumulated"));
    const paintPart = () => part.querySelectorAll("[data-plot]").forEach(paint);

    function showEpoch() {
      output.textContent = `epoch ${chosen().frames[epoch.value]} of ${chosen().epochs.at(-1)}`;
      epoch.setAttribute("aria-valuetext", output.textContent);
    }
    function chooseRun() {
      const before = layer.selectedOptions[0]?.text;
      layer.replaceChildren(...chosen().layers.map((each, i) => {
        const shape = each.maps.gradient.shape.slice(1).join(" × ");
        return new Option(`${each.name} (${each.size.toLocaleString("en")} values, ${shape} cells)`, i);
      }));
      const same = [...layer.options].findIndex((option) => option.text === before);
      const sizes = chosen().layers.map((each) => each.size);
      layer.selectedIndex = same < 0 ? sizes.indexOf(Math.max(...sizes)) : same;
      epoch.max = chosen().frames.length - 1;
      epoch.value = epoch.max;
      verdicts.replaceChildren(...chosen().verdicts.map(({ claim, holds, numbers }) => {
        const item = document.createElement("li");
        const word = { true: "yes", false: "no" }[holds] ?? "cannot tell";
        item.append(`${claim}: `, Object.assign(document.createElement("strong"), { textContent: word }), ` (${numbers})`);
        return item;
      }));
      showEpoch();
    }
    run.addEventListener("change", () => { chooseRun(); paintPart(); });
    layer.addEventListener("change", paintPart);
    epoch.addEventListener("input", () => { showEpoch(); paintPart(); });

    let timer = null;
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    play.addEventListener("click", () => {
      if (timer) return stop();
      const step = (to) => { epoch.value = to; showEpoch(); paintPart(); };
      if (epoch.value === epoch.max) step(0);
      play.textContent = "Stop";
      timer = setInterval(() => {
        step(Number(epoch.value) + 1);
        if (epoch.value === epoch.max) stop();
      }, 350);
    });
    chooseRun();
  }

  paintAll();

  // --- Tables are sorted by their headings.

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const down = heading.getAttribute("aria-sort") === "ascending";
      const body = heading.closest("table").tBodies[0];
      const value = (row) => row.cells[heading.cellIndex].dataset.value ?? "";
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!x || !y) return !x - !y; // nothing measured: last, either way
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
        return down ? -order : order;
      });
      heading.parentElement.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  }
})();
