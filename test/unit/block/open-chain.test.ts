/** Opening chains: depth, loops, formats, policies, warnings; and that failures leave nothing open. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  CHAIN_DEPTH_MAX,
  closeChain,
  type OpenChain,
  type OpenOptions,
  openChain,
} from "../../../src/block/open-chain.ts";
import { type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import { type QedOptions, qedBytes } from "../../support/qed-builder.ts";
import { withScratch } from "../../support/scratch.ts";

const OPTIONS: OpenOptions = { format: undefined, backingPolicy: undefined, forceShare: false };

/** A directory with images by name. */
class Images {
  readonly directory: string;
  constructor(directory: string) {
    this.directory = directory;
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  qcow2(name: string, options: Qcow2Options = {}): string {
    fs.writeFileSync(
      this.path(name),
      qcow2Bytes({ clusterBits: 9, virtualSize: 1024, ...options }),
    );
    return this.path(name);
  }

  qed(name: string, options: QedOptions = {}): string {
    fs.writeFileSync(
      this.path(name),
      qedBytes({ clusterSize: 4096, tableClusters: 1, ...options }),
    );
    return this.path(name);
  }

  raw(name: string): string {
    fs.writeFileSync(this.path(name), new Uint8Array(1024));
    return this.path(name);
  }
}

async function withImages(body: (images: Images) => void): Promise<void> {
  await withScratch("open-chain", async (directory) => body(new Images(directory)));
}

/** Opens a chain, looks at it, and closes it. */
function look<T>(path: string, options: Partial<OpenOptions>, body: (chain: OpenChain) => T): T {
  const chain = openChain(path, { ...OPTIONS, ...options });
  try {
    return body(chain);
  } finally {
    closeChain(chain);
  }
}

const shapeOf = ({ layers }: OpenChain): (readonly [format: string, path: string])[] =>
  layers.map(({ file, layout }) => [layout.format, file.path]);

/** Descriptors of this process that are open on files below the directory. */
function openBelow(directory: string): string[] {
  return fs.readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = fs.readlinkSync(`/proc/self/fd/${fd}`);
      return target.startsWith(`${directory}/`) ? [target] : [];
    } catch {
      return [];
    }
  });
}

describe("openChain", () => {
  it("opens the image and what is below it, in order, and closeChain closes all", async () => {
    await withImages((images) => {
      const base = images.raw("base.raw");
      const middle = images.qed("middle.qed", { backingFile: "base.raw", backingFormat: "raw" });
      const top = images.qcow2("top.qcow2", { backingFile: "middle.qed", backingFormat: "qed" });
      look(top, {}, (chain) => {
        expect(shapeOf(chain)).toEqual([
          ["qcow2", top],
          ["qed", middle],
          ["raw", base],
        ]);
        expect(chain.warnings).toEqual([]);
        expect(openBelow(images.directory).sort()).toEqual([base, middle, top]);
      });
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("finds relative names from the directory of the image that names them", async () => {
    await withImages((images) => {
      fs.mkdirSync(images.path("sub"));
      images.raw("base.raw");
      images.qcow2("sub/middle.qcow2", { backingFile: "../base.raw", backingFormat: "raw" });
      const top = images.qcow2("top.qcow2", {
        backingFile: "sub/middle.qcow2",
        backingFormat: "qcow2",
      });
      look(top, {}, ({ layers }) => {
        expect(layers.map(({ file }) => file.path)).toEqual([
          top,
          images.path("sub/middle.qcow2"),
          `${images.directory}/sub/../base.raw`,
        ]);
      });
    });
  });

  it("believes the stated format of a backing file: raw is never probed", async () => {
    await withImages((images) => {
      images.qcow2("inner.qcow2", { backingFile: "/etc/passwd", backingFormat: "raw" });
      const top = images.qcow2("top.qcow2", { backingFile: "inner.qcow2", backingFormat: "raw" });
      look(top, {}, (chain) =>
        expect(shapeOf(chain).map(([format]) => format)).toEqual(["qcow2", "raw"]),
      );
      const qed = images.qed("top.qed", { backingFile: "inner.qcow2", backingFormat: "raw" });
      look(qed, {}, (chain) =>
        expect(shapeOf(chain).map(([format]) => format)).toEqual(["qed", "raw"]),
      );
    });
  });

  it.each([
    ["raw", (images: Images) => images.raw("base")],
    ["qcow2", (images: Images) => images.qcow2("base")],
    ["qed", (images: Images) => images.qed("base")],
  ])(
    "probes a backing file whose format is not stated, with a warning: %s",
    async (format, make) => {
      await withImages((images) => {
        make(images);
        const top = images.qcow2("top.qcow2", { backingFile: "base" });
        look(top, {}, (chain) => {
          expect(chain.layers[1]?.layout.format).toBe(format);
          expect(chain.warnings).toEqual([
            `${top}: warning: does not state the format of its backing file ${images.path("base")}; taken for ${format}`,
          ]);
        });
      });
    },
  );

  it("refuses a stated format that is not supported", async () => {
    await withImages((images) => {
      images.raw("base.vmdk");
      const top = images.qcow2("top.qcow2", { backingFile: "base.vmdk", backingFormat: "vmdk" });
      expect(() => openChain(top, OPTIONS)).toThrow(
        `${top}: the backing file's format "vmdk" is not supported`,
      );
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("warns of images that were not closed cleanly, wherever they are in the chain", async () => {
    await withImages((images) => {
      const base = images.qcow2("base.qcow2", { incompatible: 3n });
      const top = images.qcow2("top.qcow2", { backingFile: "base.qcow2", backingFormat: "qcow2" });
      look(top, {}, ({ warnings }) => {
        expect(warnings).toHaveLength(2);
        expect(warnings.every((line) => line.startsWith(`${base}: warning: `))).toBe(true);
      });
    });
  });

  it("opens an external data file", async () => {
    await withImages((images) => {
      const data = images.raw("disk.data");
      const top = images.qcow2("top.qcow2", { dataFile: "disk.data" });
      look(top, {}, ({ layers }) => expect(layers[0]?.dataFile?.path).toBe(data));
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("names the image that refers to a file that is not there", async () => {
    await withImages((images) => {
      const top = images.qcow2("top.qcow2", { backingFile: "gone", backingFormat: "raw" });
      expect(() => openChain(top, OPTIONS)).toThrow(
        expect.objectContaining({
          code: "ENOENT",
          message: `${images.path("gone")}: no such file (backing file of ${top}; tsimgfs rebase -u names it anew)`,
        }),
      );
      const data = images.qcow2("data.qcow2", { dataFile: "gone.data" });
      expect(() => openChain(data, OPTIONS)).toThrow(/gone\.data: no such file \(data file of /);
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("refuses encrypted images without a passphrase", async () => {
    await withImages((images) => {
      const top = images.qcow2("top.qcow2", { header: { crypt_method: 1 } });
      expect(() => openChain(top, OPTIONS)).toThrow(
        /is encrypted \(AES\): its passphrase is needed/,
      );
    });
  });
});

describe("policies of openChain", () => {
  it("keep backing and data files out, and need nothing of images without any", async () => {
    await withImages((images) => {
      images.raw("base");
      fs.mkdirSync(images.path("sub"));
      const alone = images.qcow2("sub/alone.qcow2");
      const beside = images.qcow2("beside.qcow2", { backingFile: "base", backingFormat: "raw" });
      const away = images.qcow2("sub/away.qcow2", { backingFile: "../base", backingFormat: "raw" });
      const data = images.qcow2("sub/data.qcow2", { dataFile: "../base" });
      const opens = (path: string, backingPolicy: "any" | "same-directory" | "none"): boolean => {
        try {
          return look(path, { backingPolicy }, () => true);
        } catch (error) {
          expect(error).toMatchObject({ code: "EACCES", path });
          return false;
        }
      };
      const paths = [alone, beside, away, data];
      expect(paths.map((path) => opens(path, "any"))).toEqual([true, true, true, true]);
      expect(paths.map((path) => opens(path, "same-directory"))).toEqual([
        true,
        true,
        false,
        false,
      ]);
      expect(paths.map((path) => opens(path, "none"))).toEqual([true, false, false, false]);
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("hold for the images further down too", async () => {
    await withImages((images) => {
      images.qcow2("base.qcow2", { backingFile: "nbd://host/x", backingFormat: "raw" });
      const top = images.qcow2("top.qcow2", { backingFile: "base.qcow2", backingFormat: "qcow2" });
      expect(() => openChain(top, OPTIONS)).toThrow(
        /base\.qcow2: backing file "nbd:\/\/host\/x" is refused/,
      );
    });
  });
});

describe("loops and depth of chains", () => {
  const expectLoop = (path: string): void =>
    expect(() => openChain(path, OPTIONS)).toThrow(
      expect.objectContaining({
        code: "ELOOP",
        message: expect.stringMatching(/is in its own backing chain, as /),
      }),
    );

  it("refuses an image that is its own backing file", async () => {
    await withImages((images) => {
      expectLoop(images.qcow2("a", { backingFile: "a", backingFormat: "qcow2" }));
      expectLoop(images.qcow2("b", { backingFile: "b", backingFormat: "raw" }));
      expectLoop(images.qcow2("c", { dataFile: "c" }));
      expect(openBelow(images.directory)).toEqual([]);
    });
  });

  it("refuses a loop of several images", async () => {
    await withImages((images) => {
      images.qcow2("c", { backingFile: "a", backingFormat: "qcow2" });
      images.qcow2("b", { backingFile: "c", backingFormat: "qcow2" });
      expectLoop(images.qcow2("a", { backingFile: "b", backingFormat: "qcow2" }));
    });
  });

  it("sees through symbolic and hard links", async () => {
    await withImages((images) => {
      fs.symlinkSync("a", images.path("soft"));
      expectLoop(images.qcow2("a", { backingFile: "soft", backingFormat: "qcow2" }));
      expect(() => openChain(images.path("a"), OPTIONS)).toThrow(
        `${images.path("soft")}: is in its own backing chain, as ${images.path("a")}`,
      );
      const b = images.qcow2("b", { backingFile: "hard", backingFormat: "qcow2" });
      fs.linkSync(b, images.path("hard"));
      expectLoop(b);
    });
  });

  it("takes a chain of as many images as the limit allows, and no deeper one", async () => {
    await withImages((images) => {
      images.qcow2("0");
      for (let depth = 1; depth <= CHAIN_DEPTH_MAX; depth++) {
        images.qcow2(`${depth}`, { backingFile: `${depth - 1}`, backingFormat: "qcow2" });
      }
      const deepest = images.path(`${CHAIN_DEPTH_MAX - 1}`);
      look(deepest, {}, ({ layers }) => expect(layers).toHaveLength(64));
      const tooDeep = images.path(`${CHAIN_DEPTH_MAX}`);
      expect(() => openChain(tooDeep, OPTIONS)).toThrow(
        `${tooDeep}: its backing chain is deeper than the limit of 64 images`,
      );
      expect(openBelow(images.directory)).toEqual([]);
    });
  });
});
