/** Crashes with compressed clusters, sub-clusters and external data files. */

import { testReplays } from "./replay-suite.ts";

testReplays("special");
