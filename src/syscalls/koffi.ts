/**
 * koffi. What it loads itself with reads the headers of this program and of its libraries first, to find out what
 * binary fits: 7 of 8 ms, in each thread. The one that fits nearly everywhere is tried before.
 */

import fs from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type Koffi from "koffi";

const require = createRequire(import.meta.url);

/** The folder that packages are in, if koffi is where a package is looked for from here. Node's own search takes 3 ms. */
function findPackages(): string | undefined {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const packages = join(folder, "node_modules");
    if (fs.existsSync(join(packages, "koffi"))) return packages;
    if (folder === dirname(folder)) return undefined;
  }
}

function load(): typeof Koffi {
  const packages = findPackages();
  if (packages !== undefined) {
    try {
      const { arch, platform } = process;
      const name = `@koromix/koffi-${platform}-${arch}/${platform}_${arch}/koffi.node`;
      const binary = require(join(packages, name));
      // As koffi makes sure itself: binary and declarations are of one version.
      const declared = fs.readFileSync(join(packages, "koffi", "package.json"), "utf8");
      if (binary.version === JSON.parse(declared).version) return binary;
    } catch {
      // Another system, or packages that are laid out in another way.
    }
  }
  return require("koffi");
}

export const koffi: typeof Koffi = load();
