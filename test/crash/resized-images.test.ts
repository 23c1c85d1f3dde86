/** Crashes while disks grow and shrink. */

import { testReplays } from "./replay-suite.ts";

testReplays("resized");
