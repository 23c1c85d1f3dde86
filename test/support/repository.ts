// Where the repository and the built command are.

import { resolve } from "node:path";

/** Root of the repository. */
export const REPOSITORY = resolve(import.meta.dirname, "../..");

/** The command under test, run as `node MAIN`; TSIMGFS_TEST_MAIN names another build. */
export const MAIN = resolve(REPOSITORY, process.env["TSIMGFS_TEST_MAIN"] ?? "dist/cli/main.js");
