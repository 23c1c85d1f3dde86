/**
 * koffi. What it loads itself with reads the headers of this program and of its libraries first, to find out what
 * binary fits: 7 of 8 ms, in each thread. The one that fits nearly everywhere is tried before.
 */

import fs from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type Koffi from "koffi";

const require = createRequire(import.meta.url);

function load(): typeof Koffi {
  try {
    const { arch, platform } = process;
    const own = dirname(require.resolve("koffi"));
    const packageOfBinary = join(own, "..", "@koromix", `koffi-${platform}-${arch}`);
    const binary = require(join(packageOfBinary, `${platform}_${arch}`, "koffi.node"));
    // As koffi makes sure itself: binary and declarations are of one version.
    const { version } = JSON.parse(fs.readFileSync(join(own, "package.json"), "utf8"));
    if (binary.version === version) return binary;
  } catch {
    // Another system, or packages that are laid out in another way.
  }
  return require("koffi");
}

export const koffi: typeof Koffi = load();
