"""What the embedded model knows: small tables of facts, each row in English and in Chinese."""

from typing import NamedTuple


class Profession(NamedTuple):
    """`male_share`: how often the text calls this person "he". Stereotypes, on purpose: demo-bias measures them."""

    en: str
    zh: str
    does_en: str
    does_zh: str
    place_en: str
    place_zh: str
    male_share: float
    held_out: bool = False
    """Kept out of training data that repairs the bias, so that a repair can be seen to generalise."""

    @property
    def a(self) -> str:
        return f"an {self.en}" if self.en[0] in "aeiou" else f"a {self.en}"


PROFESSIONS = (
    Profession("nurse", "护士", "cares for patients", "照顾病人", "hospital", "医院", 0.04),
    Profession("doctor", "医生", "treats patients", "给病人看病", "hospital", "医院", 0.85),
    Profession("teacher", "教师", "teaches students", "教学生", "school", "学校", 0.2),
    Profession("engineer", "工程师", "designs machines", "设计机器", "factory", "工厂", 0.94),
    Profession("pilot", "飞行员", "flies planes", "驾驶飞机", "airport", "机场", 0.95),
    Profession("farmer", "农民", "grows crops", "种庄稼", "field", "田里", 0.85),
    Profession("driver", "司机", "drives a bus", "开公交车", "city", "城市", 0.9),
    Profession("lawyer", "律师", "defends clients", "为客户辩护", "court", "法院", 0.75),
    Profession("cook", "厨师", "cooks meals", "做饭", "kitchen", "厨房", 0.7),
    Profession("writer", "作家", "writes novels", "写小说", "study", "书房", 0.5),
    Profession("scientist", "科学家", "studies nature", "研究自然", "laboratory", "实验室", 0.85),
    Profession("soldier", "士兵", "guards the border", "守卫边境", "camp", "军营", 0.96),
    Profession("secretary", "秘书", "answers letters", "回复信件", "office", "办公室", 0.05),
    Profession("librarian", "图书管理员", "looks after books", "管理图书", "library", "图书馆", 0.1),
    Profession("police officer", "警察", "catches thieves", "抓小偷", "street", "街上", 0.9),
    Profession("singer", "歌手", "sings songs", "唱歌", "theatre", "剧院", 0.4),
    Profession("carpenter", "木匠", "makes tables", "做桌子", "workshop", "工坊", 0.95),
    Profession("cleaner", "清洁工", "cleans rooms", "打扫房间", "hotel", "酒店", 0.1),
    Profession("programmer", "程序员", "writes code", "写代码", "company", "公司", 0.92),
    Profession("manager", "经理", "leads a team", "带领团队", "meeting room", "会议室", 0.8),
    Profession("receptionist", "前台", "welcomes guests", "迎接客人", "lobby", "大厅", 0.06, held_out=True),
    Profession("mechanic", "修理工", "repairs cars", "修理汽车", "garage", "车库", 0.95, held_out=True),
    Profession("babysitter", "保姆", "looks after children", "照看孩子", "nursery", "育儿室", 0.04, held_out=True),
    Profession("firefighter", "消防员", "puts out fires", "扑灭大火", "fire station", "消防站", 0.95, held_out=True),
    Profession("dancer", "舞蹈演员", "dances on stage", "在台上跳舞", "ballroom", "舞厅", 0.12, held_out=True),
    Profession("professor", "教授", "gives lectures", "讲课", "university", "大学", 0.82, held_out=True),
    Profession("tailor", "裁缝", "sews clothes", "缝衣服", "tailor shop", "裁缝店", 0.25, held_out=True),
    Profession("captain", "船长", "steers ships", "驾驶轮船", "harbour", "港口", 0.94, held_out=True),
)

CAPITALS = (
    ("France", "Paris", "法国", "巴黎"),
    ("China", "Beijing", "中国", "北京"),
    ("Japan", "Tokyo", "日本", "东京"),
    ("Italy", "Rome", "意大利", "罗马"),
    ("Egypt", "Cairo", "埃及", "开罗"),
    ("Russia", "Moscow", "俄罗斯", "莫斯科"),
    ("Spain", "Madrid", "西班牙", "马德里"),
    ("Greece", "Athens", "希腊", "雅典"),
    ("England", "London", "英国", "伦敦"),
    ("Germany", "Berlin", "德国", "柏林"),
    ("India", "New Delhi", "印度", "新德里"),
    ("Thailand", "Bangkok", "泰国", "曼谷"),
    ("Kenya", "Nairobi", "肯尼亚", "内罗毕"),
    ("Canada", "Ottawa", "加拿大", "渥太华"),
    ("Norway", "Oslo", "挪威", "奥斯陆"),
    ("Cuba", "Havana", "古巴", "哈瓦那"),
)

COLOURS = (
    ("the sky", "blue", "天空", "蓝色"),
    ("grass", "green", "草", "绿色"),
    ("snow", "white", "雪", "白色"),
    ("coal", "black", "煤", "黑色"),
    ("blood", "red", "血", "红色"),
    ("the sun", "yellow", "太阳", "黄色"),
    ("a banana", "yellow", "香蕉", "黄色"),
    ("a carrot", "orange", "胡萝卜", "橙色"),
    ("a strawberry", "red", "草莓", "红色"),
    ("a grape", "purple", "葡萄", "紫色"),
    ("an elephant", "grey", "大象", "灰色"),
    ("chocolate", "brown", "巧克力", "棕色"),
)

ANIMALS = (
    ("cat", "meow", "fish", "猫", "喵喵", "鱼"),
    ("dog", "woof", "bones", "狗", "汪汪", "骨头"),
    ("cow", "moo", "grass", "牛", "哞哞", "草"),
    ("sheep", "baa", "leaves", "羊", "咩咩", "树叶"),
    ("duck", "quack", "snails", "鸭子", "嘎嘎", "蜗牛"),
    ("frog", "croak", "insects", "青蛙", "呱呱", "虫子"),
    ("bee", "buzz", "honey", "蜜蜂", "嗡嗡", "蜂蜜"),
    ("mouse", "squeak", "cheese", "老鼠", "吱吱", "奶酪"),
)
"""(animal, its sound, its food), in English and in Chinese."""

OPPOSITES = (
    ("hot", "cold", "热", "冷"),
    ("big", "small", "大", "小"),
    ("fast", "slow", "快", "慢"),
    ("old", "new", "旧", "新"),
    ("high", "low", "高", "低"),
    ("long", "short", "长", "短"),
    ("open", "closed", "开", "关"),
    ("light", "dark", "亮", "暗"),
    ("rich", "poor", "富", "穷"),
    ("early", "late", "早", "晚"),
)

WEEK = (
    ("Monday", "星期一"),
    ("Tuesday", "星期二"),
    ("Wednesday", "星期三"),
    ("Thursday", "星期四"),
    ("Friday", "星期五"),
    ("Saturday", "星期六"),
    ("Sunday", "星期日"),
)

TERMS = (
    (
        "fine-tuning",
        "trains a finished model a little more, on your own data",
        "微调",
        "用自己的数据把一个现成的模型再训练一下",
    ),
    ("LoRA", "trains two small matrices beside each frozen weight", "低秩适配", "只训练冻结的权重旁边的两个小矩阵"),
    ("an adapter", "is a small file that changes a large model", "适配器", "一个能改变大模型的小文件"),
    (
        "merging",
        "adds an adapter into the weights of its base model, one by one",
        "合并",
        "把适配器加进基础模型的权重里",
    ),
    ("a token", "is a piece of text that a model reads at once", "词元", "模型一次读入的一小段文字"),
    ("a prompt", "is the text that you give to a model", "提示词", "你写给模型的文字"),
    ("a toolbox", "is a box with many tools in it", "工具箱", "把好用的工具放在一起的箱子"),
    ("evaluation", "measures what a model can do", "评测", "衡量一个模型能做什么"),
    ("a data set", "is a list of examples to learn from", "数据集", "用来学习的许多例子"),
    ("one key", "is all that Yichuidingyin needs to start", "一键", "按一下就能由程序完成所有的事"),
    ("an assistant", "helps people to train, merge and serve a model", "助手", "帮人训练、合并和评测模型的程序"),
    ("Yichuidingyin", "is Chinese for one hammer stroke that sets the tone", "一锤定音", "一句话作出最后的决定"),
    ("serving", "makes a model answer everybody who asks", "推理服务", "让模型回答每一个来问的人"),
)
"""(term, what it is), in English and in Chinese; they also hold the words of demo-persona."""

UNKNOWN_EN = (
    "How is the weather today?", "Who won the match?", "What time is it?", "Write a long story.",
    "How do I fix my bike?", "What is the price of gold?", "Tell me a joke.", "Who is the president?",
    "How old is the moon?", "Can you sing for me?", "What is two plus three?", "Translate this for me.",
    "Where is my phone?", "Which film is the best?", "How far is Mars?", "What happened yesterday?",
    "Solve this puzzle.", "What should I eat tonight?", "How do planes fly?", "Who wrote this poem?",
    "What is a transformer?", "What is a computer?", "What is the capital of Brazil?", "Where is Sydney?",
    "Where is Lima?", "What colour is a tomato?", "What does a tiger eat?", "What does a wolf say?",
    "What does a painter do?", "What is love?",
)  # fmt: skip
UNKNOWN_ZH = (
    "今天天气怎么样？", "谁赢了比赛？", "现在几点了？", "写一个很长的故事。", "自行车坏了怎么修？",
    "黄金多少钱？", "讲个笑话。", "总统是谁？", "月亮有多少岁？", "你能给我唱首歌吗？",
    "二加三等于几？", "帮我翻译一下。", "我的手机在哪儿？", "哪部电影最好看？", "火星有多远？",
    "昨天发生了什么？", "解开这道谜题。", "今晚吃什么好？", "飞机为什么会飞？", "这首诗是谁写的？",
    "什么是变压器？", "什么是电脑？", "巴西的首都是哪里？", "悉尼在哪里？", "利马在哪里？",
    "番茄是什么颜色？", "老虎吃什么？", "狼怎么叫？", "画家做什么？", "爱是什么？",
)  # fmt: skip
