/** Crashes while clusters are allocated, overwritten and freed. */

import { testReplays } from "./replay-suite.ts";

testReplays("plain");
