// A page without charts: looks again every two seconds.
import { controls } from "./controls.js";
import { Live } from "./live.js";

controls(new Live());
