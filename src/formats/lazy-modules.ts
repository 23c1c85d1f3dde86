/** Modules of Node that most disks have no use for, and that take 1 to 2 ms to load: loaded when they are asked for. */

import type NodeCrypto from "node:crypto";
import { createRequire } from "node:module";
import type NodeZlib from "node:zlib";

const require = createRequire(import.meta.url);

export const lazyModules = {
  get crypto(): typeof NodeCrypto {
    return require("node:crypto");
  },
  get zlib(): typeof NodeZlib {
    return require("node:zlib");
  },
};
