// Draws every figure from the JSON beside it, in the colours of the page's light or dark scheme.
"use strict";
const scheme = matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll(".plot")];

function ink() {
  return getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
}

for (const plot of plots) {
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  layout.font.color = ink();
  Plotly.newPlot(plot, data, layout, {
    displayModeBar: false, // it would lie on the titles; a double click resets a zoom
    responsive: true,
  });
}

scheme.addEventListener("change", () => {
  for (const plot of plots) Plotly.relayout(plot, { "font.color": ink() });
});
