// Values under the pointer. Without this script the page says the same, only less precisely.
for (const svg of document.querySelectorAll("svg[data-lines]")) {
  const lines = JSON.parse(svg.dataset.lines);
  const cursor = svg.querySelector(".cursor");
  const readout = svg.parentElement.querySelector(".readout");
  const hint = readout.textContent;

  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));

  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
    const found = lines.map((line) => ({ line, point: nearest(line.points, x) }));
    const [at, , step] = found.map((f) => f.point).reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    readout.replaceChildren(`step ${step} `);
    for (const { line, point } of found) {
      const mark = document.createElement("i");
      mark.className = `key c${line.colour}`;
      readout.append(" ", mark, point[2] === step ? point[3] : `${point[3]} (step ${point[2]})`);
    }
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.replaceChildren(hint);
  });
}
