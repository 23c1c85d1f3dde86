// A vitest reporter whose only output is the last line of the run: "N passed, N failed[, N skipped]".

import type { Reporter, SerializedError, TestModule } from "vitest/node";

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Counts of the tests of one file; a file that failed outside its tests is one more failed. */
function countModule(module: TestModule, counts: Counts): void {
  let failedTests = 0;
  for (const test of module.children.allTests()) {
    const { state } = test.result();
    if (state === "passed") {
      counts.passed++;
    } else if (state === "skipped") {
      counts.skipped++;
    } else {
      failedTests++; // "pending" too: the run ended before the test did.
    }
  }
  const suiteErrors = [...module.children.allSuites()].filter(
    (suite) => suite.errors().length > 0,
  ).length;
  counts.failed += failedTests + suiteErrors + (module.errors().length > 0 ? 1 : 0);
  if (module.state() === "failed" && failedTests + suiteErrors + module.errors().length === 0) {
    counts.failed++;
  }
}

/** Prints the counts when the process ends, so that nothing comes after them. */
export default class SummaryReporter implements Reporter {
  #counts: Counts | undefined;

  onInit(): void {
    process.on("exit", () => this.#print());
  }

  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    const counts = { passed: 0, failed: errors.length, skipped: 0 };
    for (const module of modules) {
      countModule(module, counts);
    }
    this.#counts = counts;
  }

  #print(): void {
    const { passed, failed, skipped } = this.#counts ?? { passed: 0, failed: 0, skipped: 0 };
    // A setup or teardown that failed shows in the exit code only.
    const isUncounted = failed === 0 && (process.exitCode ?? 0) !== 0;
    const failures = isUncounted || this.#counts === undefined ? failed + 1 : failed;
    if (failures > 0) {
      const seed = process.env["TSIMGFS_TEST_SEED"] ?? "1";
      process.stdout.write(`\nTSIMGFS_TEST_SEED=${seed} repeats this run\n`);
    }
    const tail = skipped > 0 ? `, ${skipped} skipped` : "";
    process.stdout.write(`${passed} passed, ${failures} failed${tail}\n`);
  }
}
