/** Crashes while data shows through from backing files and snapshots. */

import { testReplays } from "./replay-suite.ts";

testReplays("shared");
