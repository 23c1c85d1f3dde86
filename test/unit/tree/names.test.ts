/** Names of devices and snapshots as file names: safe, of a length that Linux takes, no two alike. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DEVICE_SUFFIX, deviceNameOf, snapshotFileNames } from "../../../src/tree/names.ts";

const named = (...names: string[]): { id: string; name: string }[] =>
  names.map((name, index) => ({ id: String(index + 1), name }));

describe("deviceNameOf", () => {
  it.each([
    ["/images/vm.qcow2", "vm"],
    ["vm.QED", "vm"],
    ["/a/vm.raw", "vm"],
    ["vm.img", "vm"],
    ["vm.vmdk", "vm.vmdk"],
    ["vm", "vm"],
    ["vm.raw.qcow2", "vm.raw"],
    ["/a.b/my disk.1.img", "my disk.1"],
    [".qcow2", ".qcow2"],
  ])("of %s is %s", (path, name) => {
    expect(deviceNameOf(path)).toBe(name);
  });
});

describe("snapshotFileNames", () => {
  it("leaves ordinary names alone", () => {
    const names = ["before upgrade", "2024-01-02 03:04", "äöü 磁盘", "a.b~c", ".hidden", "-rf"];
    expect(snapshotFileNames(named(...names))).toEqual(names);
  });

  it.each([
    ["../../etc/passwd", ".._.._etc_passwd"],
    ["a/b", "a_b"],
    ["a\0b", "a_b"],
    ["\x1b[31mred\n", "_[31mred_"],
    ["\x7f\x9b", "__"],
    ["\u202egpj.exe", "_gpj.exe"],
    ["a\u2066b\u2069", "a_b_"],
    ["line\u2028break", "line_break"],
  ])("makes %j safe: %j", (name, safe) => {
    expect(snapshotFileNames(named(name))).toEqual([safe]);
  });

  it("makes an id safe too, where it is needed", () => {
    const names = snapshotFileNames([
      { id: "1", name: "a" },
      { id: "../2", name: "a" },
    ]);
    expect(names[1]).not.toContain("/");
  });

  it("takes the id where there is no name", () => {
    expect(snapshotFileNames([{ id: "7", name: "" }])).toEqual(["7"]);
  });

  it("adds the id to the second of two equal names", () => {
    expect(snapshotFileNames(named("a", "a", "b"))).toEqual(["a", "a~2", "b"]);
    expect(snapshotFileNames(named("x/y", "x_y"))).toEqual(["x_y", "x_y~2"]);
  });

  it("gives different names whatever ids and names are chosen to look alike", () => {
    const names = snapshotFileNames([
      { id: "9", name: "a~1~3" },
      { id: "8", name: "a~1" },
      { id: "7", name: "a" },
      { id: "1", name: "a" },
      { id: "1", name: "a" },
    ]);
    expect(new Set(names).size).toBe(5);
  });

  it("limits names to what Linux takes with the suffix, in whole characters", () => {
    for (const name of ["n".repeat(300), "é".repeat(200), "磁".repeat(200), "🖴".repeat(100)]) {
      const [short = ""] = snapshotFileNames(named(name));
      const bytes = Buffer.byteLength(short + DEVICE_SUFFIX);
      expect(bytes).toBeLessThanOrEqual(255);
      expect(bytes).toBeGreaterThan(255 - 4);
      expect(name.startsWith(short)).toBe(true);
      expect(short).not.toMatch(/\p{Cs}/u);
    }
  });

  it("keeps long names apart that are equal in what is left of them", () => {
    const long = "磁".repeat(100);
    const names = snapshotFileNames(named(`${long}1`, `${long}2`, `${long}3`));
    expect(new Set(names).size).toBe(3);
  });

  it("gives distinct, safe names of the right length for any snapshots", () => {
    const word = fc.oneof(
      fc.string({ unit: "binary", maxLength: 300 }),
      fc.constantFrom("", "a", "a~1", "a~1~2", "1", "~1", "/", "_", ".", ".."),
    );
    fc.assert(
      fc.property(fc.array(fc.record({ id: word, name: word }), { maxLength: 12 }), (snapshots) => {
        const names = snapshotFileNames(snapshots);
        expect(names).toHaveLength(snapshots.length);
        expect(new Set(names).size).toBe(names.length);
        for (const name of names) {
          expect(Buffer.byteLength(name + DEVICE_SUFFIX)).toBeLessThanOrEqual(255);
          expect(/[/\p{Cc}]/u.test(name)).toBe(false);
          expect(name).not.toBe("");
        }
      }),
      { numRuns: 100 },
    );
  });
});
