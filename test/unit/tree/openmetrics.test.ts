/** The OpenMetrics text format: what is written is what a strict reader finds. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OpenMetricsText } from "../../../src/tree/openmetrics.ts";
import { parseOpenMetrics } from "../../support/openmetrics.ts";

const text = fc.string({
  unit: fc.constantFrom("a", '"', "\\", "\n", "n", "{", "}", ",", " ", "é", "\t"),
});

describe("OpenMetricsText", () => {
  it("says what a name may contain so that it can be read back", () => {
    fc.assert(
      fc.property(fc.uniqueArray(text), text, (names, help) => {
        const metrics = new OpenMetricsText();
        metrics.family({ name: "a_bytes", type: "counter", unit: "bytes", help });
        names.forEach((device, value) => {
          metrics.sample("_total", { device, operation: "read" }, value);
        });
        expect(parseOpenMetrics(metrics.end())).toEqual([
          {
            name: "a_bytes",
            type: "counter",
            unit: "bytes",
            help,
            samples: names.map((device, value) => ({
              name: "a_bytes_total",
              labels: { device, operation: "read" },
              value,
            })),
          },
        ]);
      }),
    );
  });

  it("is the text of the specification", () => {
    const metrics = new OpenMetricsText();
    metrics.family({ name: "acme_http", type: "info", help: "A \\ and\na line." });
    metrics.sample("_info", { path: 'C:\\DIR\\FILE.TXT "x"\n' }, 1);
    metrics.family({ name: "size_bytes", type: "gauge", unit: "bytes", help: "Size." });
    metrics.sample("", { device: "vm" }, 2 ** 40);
    expect(metrics.end()).toBe(
      [
        "# TYPE acme_http info",
        "# HELP acme_http A \\\\ and\\na line.",
        'acme_http_info{path="C:\\\\DIR\\\\FILE.TXT \\"x\\"\\n"} 1',
        "# TYPE size_bytes gauge",
        "# UNIT size_bytes bytes",
        "# HELP size_bytes Size.",
        'size_bytes{device="vm"} 1099511627776',
        "# EOF",
        "",
      ].join("\n"),
    );
  });
});

describe("the strict reader", () => {
  it.each([
    ["no end", "# TYPE a gauge\na 1\n"],
    ["text behind the end", "# EOF\na 1\n"],
    ["a counter without _total", "# TYPE a counter\na 1\n# EOF\n"],
    ["a unit that the name lacks", "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n"],
    [
      "families that are mixed",
      "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\n# EOF\n",
    ],
    ["a bad escape", '# TYPE a gauge\na{b="\\q"} 1\n# EOF\n'],
    ["a value that is none", "# TYPE a gauge\na NaN1\n# EOF\n"],
    ["the same sample twice", "# TYPE a gauge\na 1\na 1\n# EOF\n"],
    [
      "a histogram without +Inf",
      '# TYPE a histogram\na_bucket{le="1"} 1\na_count 1\na_sum 1\n# EOF\n',
    ],
    [
      "buckets that descend",
      '# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_count 1\na_sum 1\n# EOF\n',
    ],
  ])("refuses %s", (_, wrong) => {
    expect(() => parseOpenMetrics(wrong)).toThrow();
  });
});
