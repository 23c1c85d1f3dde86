/** Which files an image may make us open: protocol names, relative names, and the policies. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  type BackingPolicy,
  defaultBackingPolicy,
  permittedPath,
  protocolOf,
  resolveReference,
} from "../../../src/block/referenced-file.ts";
import { withScratch } from "../../support/scratch.ts";

describe("protocolOf", () => {
  it.each([
    ["nbd://host/export", "nbd"],
    ["nbd:unix:/run/nbd.sock", "nbd"],
    ['json:{"driver":"file"}', "json"],
    ["https://host/disk.qcow2", "https"],
    ["file:disk.qcow2", "file"],
    ["fat:rw:/tmp", "fat"],
    ["a b:c", "a b"],
    ["c:\\disk.img", "c"],
    [":disk", ""],
    ["x\ny:z", "x\ny"],
  ])("of %j is %j", (name, protocol) => {
    expect(protocolOf(name)).toBe(protocol);
  });

  it.each(["disk.qcow2", "/images/disk.qcow2", "./a:b", "dir/a:b", "/a:b", "", "../nbd://x"])(
    "of the plain path %j is none",
    (name) => {
      expect(protocolOf(name)).toBeUndefined();
    },
  );
});

describe("resolveReference", () => {
  it.each([
    ["/images/a.qcow2", "base.raw", "/images/base.raw"],
    ["/images/a.qcow2", "../base.raw", "/images/../base.raw"],
    ["/images/a.qcow2", "/other/base.raw", "/other/base.raw"],
    ["/a.qcow2", "base.raw", "/base.raw"],
    ["images/a.qcow2", "base.raw", "images/base.raw"],
    ["a.qcow2", "base.raw", "base.raw"],
    ["a.qcow2", "sub/base.raw", "sub/base.raw"],
  ])("from %s, %s is %s", (imagePath, name, path) => {
    expect(resolveReference(imagePath, name)).toBe(path);
  });
});

describe("permittedPath", () => {
  const permitted = (name: string, policy: BackingPolicy, imagePath = "/images/a.qcow2"): string =>
    permittedPath({ imagePath, role: "backing file", name }, policy);

  it.each(["any", "same-directory", "none"] as const)(
    "refuses protocols under the policy %s",
    (policy) => {
      expect(() => permitted("nbd://host", policy)).toThrow(
        expect.objectContaining({
          code: "EACCES",
          message:
            '/images/a.qcow2: backing file "nbd://host" is refused: "nbd:" is not a plain local path',
        }),
      );
    },
  );

  it("permits every local path under any, none under none", () => {
    for (const name of ["base", "../base", "/etc/passwd"]) {
      expect(() => permitted(name, "any")).not.toThrow();
      expect(() => permitted(name, "none")).toThrow(/is refused: the policy is none/);
    }
  });

  it("names the role, and shortens what is too long for a line", () => {
    const name = "x".repeat(1000);
    const reference = { imagePath: "a", role: "data file", name } as const;
    expect(() => permittedPath(reference, "none")).toThrow(/^a: data file "x{120}…" is refused/);
  });

  it("permits the directory of the image under same-directory, symbolic links followed", async () => {
    await withScratch("policy", async (directory) => {
      const here = join(directory, "here");
      const there = join(directory, "there");
      fs.mkdirSync(here);
      fs.mkdirSync(there);
      for (const path of [join(here, "a"), join(here, "base"), join(there, "base")]) {
        fs.writeFileSync(path, "");
      }
      fs.symlinkSync(join(there, "base"), join(here, "away"));
      fs.symlinkSync(join(here, "base"), join(there, "back"));
      fs.symlinkSync(here, join(directory, "link"));
      const image = join(here, "a");
      const sees = (name: string, imagePath = image): string =>
        permitted(name, "same-directory", imagePath);

      expect(sees("base")).toBe(join(here, "base"));
      expect(sees(join(here, "base"))).toBe(join(here, "base"));
      expect(sees("../here/base")).toBe(`${here}/../here/base`);
      expect(sees("../there/back")).toBe(`${here}/../there/back`);
      expect(sees("base", join(directory, "link", "a"))).toBe(join(directory, "link", "base"));
      for (const name of ["../there/base", join(there, "base"), "away", "/etc/passwd"]) {
        expect(() => sees(name)).toThrow(/is in another directory than the image/);
      }
    });
  });

  it("takes a file that is not there for one in its own directory, so that the open says so", async () => {
    await withScratch("policy", async (directory) => {
      fs.mkdirSync(join(directory, "real"));
      fs.writeFileSync(join(directory, "real", "a"), "");
      fs.symlinkSync("real", join(directory, "link"));
      for (const folder of ["real", "link"]) {
        const imagePath = join(directory, folder, "a");
        expect(permitted("missing", "same-directory", imagePath)).toBe(
          join(directory, folder, "missing"),
        );
        expect(() => permitted("../missing", "same-directory", imagePath)).toThrow(
          /another directory/,
        );
      }
    });
  });
});

describe("defaultBackingPolicy", () => {
  it("trusts root, and the owner of an image", async () => {
    await withScratch("policy", async (directory) => {
      const path = join(directory, "a");
      fs.writeFileSync(path, "");
      expect(defaultBackingPolicy(path)).toBe("any");
    });
  });

  it("does not trust an image of somebody else, except as root", () => {
    expect(defaultBackingPolicy("/etc/passwd", 12345)).toBe("same-directory");
    expect(defaultBackingPolicy("/etc/passwd", 0)).toBe("any");
  });
});
