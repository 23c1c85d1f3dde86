// Test projects: units and hostile images first, then the conformance matrix, then the mount tests one file at a time.

import { defineConfig } from "vitest/config";

// One seed for all workers; chosen at random unless the environment states it.
process.env["TSIMGFS_TEST_SEED"] ??= String(Math.floor(Math.random() * 2 ** 32));

const MINUTE_MS = 60_000;
/** Long forms do the same many times over, and may do it beside others. */
const ROUNDS = process.env["TSIMGFS_TEST_LONG"] === "1" ? 6 : 1;

/** Files of test/mount that are not run with --transport fuse-native, and why. */
const NOT_NATIVE = [
  // attach makes its mounts itself, with the default transport.
  "attach",
  "detach-closing",
  "detach-stuck",
  // Commands of documents, of scripts, of installed packages and of mount(8): they name no transport.
  "documents",
  "install",
  "mount-helper",
  "quickstart",
  // It says itself which transport it is about.
  "fuse-native",
  // Discards: fallocate(2), which fuse-native does not have.
  "write-discard",
];

export default defineConfig({
  test: {
    reporters: ["default", "./test/support/summary-reporter.ts"],
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/unit/**/*.test.ts"],
          // Much longer than any takes, also beside others.
          testTimeout: 5 * MINUTE_MS,
          hookTimeout: MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: "fuzz",
          include: ["test/fuzz/**/*.test.ts"],
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: 10 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          name: "conformance",
          include: ["test/conformance/**/*.test.ts"],
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: ROUNDS * 3 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 2 },
        },
      },
      {
        test: {
          name: "mount",
          include: ["test/mount/**/*.test.ts"],
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: 4 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 3 },
        },
      },
      {
        test: {
          name: "mount-native",
          include: ["test/mount/**/*.test.ts"],
          exclude: NOT_NATIVE.map((name) => `test/mount/${name}.test.ts`),
          env: { TSIMGFS_TEST_TRANSPORT: "fuse-native" },
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: 4 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 4 },
        },
      },
      {
        test: {
          name: "model",
          include: ["test/model/**/*.test.ts"],
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: 10 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 5 },
        },
      },
      {
        test: {
          name: "crash",
          include: ["test/crash/**/*.test.ts"],
          globalSetup: ["./test/support/global-setup.ts"],
          testTimeout: ROUNDS * 20 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
          maxWorkers: 2,
          sequence: { groupOrder: 6 },
        },
      },
    ],
  },
});
